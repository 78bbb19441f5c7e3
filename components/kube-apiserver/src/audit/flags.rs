//! The command line of auditing, under upstream's names.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};

use super::{Config, Truncate, log, webhook};

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
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
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
    /// Whether batches are written at a limited rate.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    audit_log_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 0.0)]
    audit_log_batch_throttle_qps: f64,
    #[arg(long, default_value_t = 0)]
    audit_log_batch_throttle_burst: u32,
    /// Whether events that are too large lose their objects.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    audit_log_truncate_enabled: bool,
    #[arg(long, default_value_t = 10 << 20)]
    audit_log_truncate_max_batch_size: usize,
    #[arg(long, default_value_t = 100 << 10)]
    audit_log_truncate_max_event_size: usize,
    /// The version of the events: audit.k8s.io/v1.
    #[arg(long, default_value = "audit.k8s.io/v1")]
    audit_log_version: String,
    /// Where events are posted, in a file of kubeconfig form.
    #[arg(long)]
    audit_webhook_config_file: Option<PathBuf>,
    /// As --audit-log-mode.
    #[arg(long, default_value = "batch")]
    audit_webhook_mode: String,
    /// How long to wait before what failed is posted again.
    #[arg(long, default_value = "10s")]
    audit_webhook_initial_backoff: String,
    /// Events that wait to be posted in batch mode; more are dropped and counted.
    #[arg(long, default_value_t = 10_000)]
    audit_webhook_batch_buffer_size: usize,
    /// Events posted at once in batch mode.
    #[arg(long, default_value_t = 400)]
    audit_webhook_batch_max_size: usize,
    /// How long to wait for that many.
    #[arg(long, default_value = "30s")]
    audit_webhook_batch_max_wait: String,
    /// Whether batches are posted at a limited rate.
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    audit_webhook_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 10.0)]
    audit_webhook_batch_throttle_qps: f64,
    #[arg(long, default_value_t = 15)]
    audit_webhook_batch_throttle_burst: u32,
    /// Whether events that are too large lose their objects, and lists stay below a size.
    #[arg(long, default_value = "false", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    audit_webhook_truncate_enabled: bool,
    #[arg(long, default_value_t = 10 << 20)]
    audit_webhook_truncate_max_batch_size: usize,
    #[arg(long, default_value_t = 100 << 10)]
    audit_webhook_truncate_max_event_size: usize,
    #[arg(long, default_value = "audit.k8s.io/v1")]
    audit_webhook_version: String,
}

/// What the flags of both backends have in common.
struct Batch<'a> {
    backend: &'static str,
    mode: &'a str,
    version: &'a str,
    buffer: usize,
    batch: usize,
    throttle: Option<(f64, u32)>,
    truncate: Option<(usize, usize)>,
}

impl Batch<'_> {
    fn check(&self) -> anyhow::Result<log::Mode> {
        let b = self.backend;
        if self.version != "audit.k8s.io/v1" {
            bail!("--audit-{b}-version: {:?} is not audit.k8s.io/v1", self.version);
        }
        if self.buffer == 0 || self.batch == 0 {
            bail!("--audit-{b}-batch-buffer-size and --audit-{b}-batch-max-size must be greater than 0");
        }
        if self.batch > self.buffer {
            bail!("--audit-{b}-batch-max-size must not be greater than --audit-{b}-batch-buffer-size");
        }
        if self.throttle.is_some_and(|(rate, burst)| rate <= 0.0 || !rate.is_finite() || burst == 0) {
            bail!("--audit-{b}-batch-throttle-qps and --audit-{b}-batch-throttle-burst must be greater than 0");
        }
        if self.truncate.is_some_and(|(event, batch)| event == 0 || batch < event) {
            bail!("--audit-{b}-truncate-max-event-size must be greater than 0, and not above --audit-{b}-truncate-max-batch-size");
        }
        Ok(match self.mode {
            "blocking" => log::Mode::Blocking,
            "blocking-strict" => log::Mode::BlockingStrict,
            "batch" => log::Mode::Batch,
            other => bail!("--audit-{b}-mode: {other:?} is not one of batch, blocking, blocking-strict"),
        })
    }
}

impl Flags {
    /// None: nothing is audited.
    pub fn into_config(self, duration: impl Fn(&str) -> anyhow::Result<Duration>) -> anyhow::Result<Option<Config>> {
        let format = match self.audit_log_format.as_str() {
            "json" => log::Format::Json,
            "legacy" => log::Format::Legacy,
            other => bail!("--audit-log-format: {other:?} is not one of json, legacy"),
        };
        let truncate =
            self.audit_log_truncate_enabled.then_some((self.audit_log_truncate_max_event_size, self.audit_log_truncate_max_batch_size));
        let throttle =
            self.audit_log_batch_throttle_enable.then_some((self.audit_log_batch_throttle_qps, self.audit_log_batch_throttle_burst));
        let mode = Batch {
            backend: "log",
            mode: &self.audit_log_mode,
            version: &self.audit_log_version,
            buffer: self.audit_log_batch_buffer_size,
            batch: self.audit_log_batch_max_size,
            throttle,
            truncate,
        }
        .check()?;
        let wait = duration(&self.audit_log_batch_max_wait).context("--audit-log-batch-max-wait")?;
        let hook_truncate = self
            .audit_webhook_truncate_enabled
            .then_some((self.audit_webhook_truncate_max_event_size, self.audit_webhook_truncate_max_batch_size));
        let hook_throttle = self
            .audit_webhook_batch_throttle_enable
            .then_some((self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst));
        let hook_mode = Batch {
            backend: "webhook",
            mode: &self.audit_webhook_mode,
            version: &self.audit_webhook_version,
            buffer: self.audit_webhook_batch_buffer_size,
            batch: self.audit_webhook_batch_max_size,
            throttle: hook_throttle,
            truncate: hook_truncate,
        }
        .check()?;
        let hook_wait = duration(&self.audit_webhook_batch_max_wait).context("--audit-webhook-batch-max-wait")?;
        let backoff = duration(&self.audit_webhook_initial_backoff).context("--audit-webhook-initial-backoff")?;
        let Some(policy) = self.audit_policy_file else {
            if self.audit_log_path.is_some() || self.audit_webhook_config_file.is_some() {
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
            wait,
            throttle,
        });
        let webhook = self.audit_webhook_config_file.map(|file| webhook::Config {
            file,
            mode: hook_mode,
            backoff,
            buffer: self.audit_webhook_batch_buffer_size.min(1 << 20),
            batch: self.audit_webhook_batch_max_size,
            wait: hook_wait,
            throttle: hook_throttle,
            max_bytes: hook_truncate.map(|(_, batch)| batch),
        });
        let truncate = Truncate { log: truncate.map(|(event, _)| event), webhook: hook_truncate.map(|(event, _)| event) };
        Ok(Some(Config { policy, log, webhook, truncate }))
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
        line.audit.into_config(|s| s.trim_end_matches('s').parse().map(Duration::from_secs).context("no duration"))
    }

    #[test]
    fn without_a_policy_nothing_is_audited() {
        assert!(config(&[]).unwrap().is_none());
        assert!(config(&["--audit-log-path=/x"]).unwrap().is_none());
        let c = config(&["--audit-policy-file=p"]).unwrap().unwrap();
        assert!(c.log.is_none() && c.webhook.is_none());
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
            "--audit-log-truncate-enabled",
        ]);
        let c = c.unwrap().unwrap();
        assert_eq!(c.truncate.log, Some(100 << 10));
        let log = c.log.unwrap();
        assert_eq!((log.max_age, log.max_bytes, log.wait), (Duration::from_secs(172_800), 5 << 20, Duration::from_secs(3)));
        assert_eq!((log.mode, log.format, log.buffer, log.batch), (log::Mode::Batch, log::Format::Legacy, 10_000, 1));
    }

    #[test]
    fn the_webhook_has_upstreams_defaults() {
        let c = config(&["--audit-policy-file=p", "--audit-webhook-config-file=w"]).unwrap().unwrap();
        let w = c.webhook.unwrap();
        assert_eq!((w.mode, w.buffer, w.batch, w.throttle), (log::Mode::Batch, 10_000, 400, Some((10.0, 15))));
        assert_eq!((w.wait, w.backoff, w.max_bytes, c.truncate.webhook), (Duration::from_secs(30), Duration::from_secs(10), None, None));
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
            "--audit-webhook-mode=never",
            "--audit-webhook-batch-throttle-qps=0",
            "--audit-webhook-initial-backoff=x",
        ] {
            let e = format!("{:#}", config(&[flag]).err().unwrap());
            assert!(e.contains(flag.split_once('=').unwrap().0), "{e}");
        }
        let e = config(&["--audit-webhook-truncate-enabled", "--audit-webhook-truncate-max-batch-size=1"]).err().unwrap();
        assert!(e.to_string().contains("--audit-webhook-truncate-max-event-size"), "{e}");
    }
}
