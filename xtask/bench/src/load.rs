//! Runs an operation many times with some in flight, and prints what it cost the server and how long it took.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::figure::{percentile, print};
use crate::process::processor_ms;

/// The server whose processor time is counted.
#[derive(Clone, Copy)]
pub struct Load {
    pub pid: u32,
    pub in_flight: usize,
}

impl Load {
    /// Runs `operation` for 0, 1, … `count`; the first failure ends it.
    pub async fn run<F, Work>(&self, name: &str, count: usize, operation: F) -> Result<()>
    where
        F: Fn(usize) -> Work + Send + Sync + 'static,
        Work: Future<Output = Result<()>> + Send,
    {
        eprintln!("{name}: {count} operations");
        let (operation, next) = (Arc::new(operation), Arc::new(AtomicUsize::new(0)));
        let (before, begin) = (processor_ms(self.pid)?, Instant::now());
        let mut workers = JoinSet::new();
        for _ in 0..self.in_flight.clamp(1, count.max(1)) {
            let (operation, next) = (Arc::clone(&operation), Arc::clone(&next));
            workers.spawn(async move {
                let mut samples = Vec::new();
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= count {
                        return Ok::<_, anyhow::Error>(samples);
                    }
                    let sent = Instant::now();
                    operation(turn).await?;
                    samples.push(sent.elapsed().as_secs_f64() * 1000.0);
                }
            });
        }
        let mut samples = Vec::with_capacity(count);
        while let Some(worker) = workers.join_next().await {
            samples.extend(worker.context("a worker was lost")?.with_context(|| name.to_owned())?);
        }
        let seconds = begin.elapsed().as_secs_f64();
        let spent = processor_ms(self.pid)? - before;
        print(&format!("{name}: rate"), count as f64 / seconds, "/s");
        print(&format!("{name}: processor"), spent / count as f64, "ms");
        print(&format!("{name}: p50"), percentile(&mut samples, 0.5), "ms");
        print(&format!("{name}: p99"), percentile(&mut samples, 0.99), "ms");
        Ok(())
    }
}
