//! The command line of auditing, under upstream's names.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;

use super::{Config, log};

// Without a group of its own, which would have the name of the one that this is a part of.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Flags {
    /// What is audited; without it nothing is.
    #[arg(long)]
    audit_policy_file: Option<PathBuf>,
    /// Where events are written; `-` is the standard output.
    #[arg(long)]
    audit_log_path: Option<PathBuf>,
    /// Days that old files are kept; 0: for ever.
    #[arg(long, default_value_t = 0)]
    audit_log_maxage: u64,
    /// Old files that are kept; 0: all.
    #[arg(long, default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes after which a new file is begun; 0: 100.
    #[arg(long, default_value_t = 0)]
    audit_log_maxsize: u64,
    /// Old files are compressed with gzip.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    audit_log_compress: bool,
    /// `json`, or `legacy` for a line of text.
    #[arg(long, default_value = "json")]
    audit_log_format: String,
    /// `blocking`: a request waits until its events are written; `blocking-strict`: and fails when they cannot be; `batch`: neither.
    #[arg(long, default_value = "blocking")]
    audit_log_mode: String,
    /// Events that wait to be written in batch mode; more are dropped and counted.
    #[arg(long, default_value_t = 10_000)]
    audit_log_batch_buffer_size: usize,
    /// Events written at once in batch mode.
    #[arg(long, default_value_t = 1)]
    audit_log_batch_max_size: usize,
    /// How long to wait for that many, such as `5s`.
    #[arg(long, default_value = "0s")]
    audit_log_batch_max_wait: String,
    /// The version of the events: audit.k8s.io/v1.
    #[arg(long, default_value = "audit.k8s.io/v1")]
    audit_log_version: String,
}

impl Flags {
    /// None: nothing is audited.
    pub fn into_config(self, seconds: impl Fn(&str) -> anyhow::Result<i64>) -> anyhow::Result<Option<Config>> {
        if self.audit_log_version != "audit.k8s.io/v1" {
            bail!("--audit-log-version: {:?} is not audit.k8s.io/v1", self.audit_log_version);
        }
        let format = match self.audit_log_format.as_str() {
            "json" => log::Format::Json,
            "legacy" => log::Format::Legacy,
            other => bail!("--audit-log-format: {other:?} is not one of json, legacy"),
        };
        let mode = match self.audit_log_mode.as_str() {
            "blocking" => log::Mode::Blocking,
            "blocking-strict" => log::Mode::BlockingStrict,
            "batch" => log::Mode::Batch,
            other => bail!("--audit-log-mode: {other:?} is not one of batch, blocking, blocking-strict"),
        };
        if self.audit_log_batch_buffer_size == 0 || self.audit_log_batch_max_size == 0 {
            bail!("--audit-log-batch-buffer-size and --audit-log-batch-max-size must be greater than 0");
        }
        if self.audit_log_batch_max_size > self.audit_log_batch_buffer_size {
            bail!("--audit-log-batch-max-size must not be greater than --audit-log-batch-buffer-size");
        }
        let wait = seconds(&self.audit_log_batch_max_wait).context("--audit-log-batch-max-wait")?;
        let Some(policy) = self.audit_policy_file else {
            if self.audit_log_path.is_some() {
                tracing::warn!("no --audit-policy-file is given: no events will be recorded");
            }
            return Ok(None);
        };
        let log = self.audit_log_path.map(|path| log::Config {
            path,
            max_age: Duration::from_secs(self.audit_log_maxage.saturating_mul(24 * 3600)),
            max_backups: self.audit_log_maxbackup,
            max_bytes: if self.audit_log_maxsize == 0 { 100 << 20 } else { self.audit_log_maxsize.saturating_mul(1 << 20) },
            compress: self.audit_log_compress,
            format,
            mode,
            buffer: self.audit_log_batch_buffer_size.min(1 << 20),
            batch: self.audit_log_batch_max_size,
            wait: Duration::from_secs(wait.unsigned_abs()),
        });
        Ok(Some(Config { policy, log }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        audit: Flags,
    }

    fn config(args: &[&str]) -> anyhow::Result<Option<Config>> {
        let line = Line::try_parse_from(std::iter::once(&"x").chain(args))?;
        line.audit.into_config(|s| s.trim_end_matches('s').parse().context("no duration"))
    }

    #[test]
    fn without_a_policy_nothing_is_audited() {
        assert!(config(&[]).unwrap().is_none());
        assert!(config(&["--audit-log-path=/x"]).unwrap().is_none());
        assert!(config(&["--audit-policy-file=p"]).unwrap().unwrap().log.is_none());
    }

    #[test]
    fn the_log_is_configured_as_upstreams() {
        let c = config(&[
            "--audit-policy-file=p",
            "--audit-log-path=-",
            "--audit-log-maxage=2",
            "--audit-log-maxsize=5",
            "--audit-log-mode=batch",
            "--audit-log-batch-max-wait=3s",
            "--audit-log-format=legacy",
        ]);
        let log = c.unwrap().unwrap().log.unwrap();
        assert_eq!((log.max_age, log.max_bytes, log.wait), (Duration::from_secs(172_800), 5 << 20, Duration::from_secs(3)));
        assert_eq!((log.mode, log.format, log.buffer, log.batch), (log::Mode::Batch, log::Format::Legacy, 10_000, 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for flag in [
            "--audit-log-format=xml",
            "--audit-log-mode=never",
            "--audit-log-batch-max-size=0",
            "--audit-log-version=audit.k8s.io/v1beta1",
            "--audit-log-batch-max-wait=x",
            "--audit-log-batch-max-size=20000",
        ] {
            let e = format!("{:#}", config(&[flag]).err().unwrap());
            assert!(e.contains(flag.split_once('=').unwrap().0), "{e}");
        }
    }
}
