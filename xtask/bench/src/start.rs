//! How long kube-apiserver takes from its start, with an empty etcd, to ready.

use anyhow::Result;

use crate::Programs;
use crate::control_plane::ControlPlane;
use crate::figure::{percentile, print};

/// Starts it several times, each time with another etcd.
pub async fn measure(programs: &Programs, rounds: usize) -> Result<()> {
    let mut samples = Vec::with_capacity(rounds);
    for round in 1..=rounds.max(1) {
        let plane = ControlPlane::prepare(programs).await?;
        let (_server, took) = plane.start_apiserver().await?;
        let milliseconds = took.as_secs_f64() * 1000.0;
        eprintln!("start {round}: {milliseconds:.0} ms");
        samples.push(milliseconds);
    }
    print("kube-apiserver start to readyz", percentile(&mut samples, 0.5), "ms");
    Ok(())
}
