//! Memory of every component of a cluster in which nothing happens.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Programs;
use crate::certificates;
use crate::client::Client;
use crate::control_plane::ControlPlane;
use crate::figure::print;
use crate::process::{Running, memory};

/// Those that hold a lease of their own name in kube-system.
const CONTROLLERS: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "cloud-controller-manager"];
const SETTLED: Duration = Duration::from_secs(60);

/// Starts a control plane (and the programs of a node, where that is possible here), waits, and prints the memory of each.
pub async fn measure(programs: &Programs, seconds: u64, containerd: Option<&Path>, own_network: bool) -> Result<()> {
    let mut plane = ControlPlane::prepare(programs).await?;
    let mut running = Vec::new();
    let (server, _) = plane.start_apiserver().await?;
    running.push(server);
    let client = Client::connect(plane.port, &plane.identity, 1).await?;
    allow_cloud_controller(&client).await?;
    for name in CONTROLLERS {
        running.push(plane.component(name, plane.controller_flags(name)?)?);
    }
    if own_network {
        running.push(plane.kube_proxy()?);
    }
    let _containerd = match containerd {
        Some(program) => {
            let daemon = start_containerd(&plane, program)?;
            running.push(plane.component("kubelet", kubelet_flags(&plane)?)?);
            Some(daemon)
        }
        None => None,
    };
    settle(&client, &mut running, containerd.is_some()).await?;
    eprintln!("everything works; idle for {seconds} s");
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(500)).await;
        plane.etcd().still_runs()?;
        for process in &mut running {
            process.still_runs()?;
        }
    }
    running.iter().try_for_each(report)?;
    report(plane.etcd())
}

/// Its role is not one of upstream's: machined brings it to a cluster, and here is no machined.
async fn allow_cloud_controller(client: &Client) -> Result<()> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "cloud-controller-manager"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:cloud-controller-manager"}]});
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    client.send(http::Method::POST, path, "application/json", binding.to_string()).await?;
    Ok(())
}

fn report(process: &Running) -> Result<()> {
    let found = memory(process.pid())?;
    for (what, value) in [("RSS", found.rss), ("PSS", found.pss), ("RssAnon", found.anonymous)] {
        print(&format!("{} {what}", process.name()), value, "MiB");
    }
    Ok(())
}

/// Waits until every controller leads and the node is registered: a program that only waits for something would look small.
async fn settle(client: &Client, running: &mut [Running], has_kubelet: bool) -> Result<()> {
    let begin = Instant::now();
    loop {
        for process in &mut *running {
            process.still_runs()?;
        }
        let mut missing = Vec::new();
        for name in CONTROLLERS {
            let lease = client.get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}")).await;
            let holder = lease.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
            if holder.is_none_or(|lease| lease["spec"]["holderIdentity"].as_str().is_none_or(str::is_empty)) {
                missing.push(format!("{name} does not lead"));
            }
        }
        if has_kubelet && client.get("/api/v1/nodes/bench").await.is_err() {
            missing.push("the kubelet has not registered its node".to_owned());
        }
        if missing.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > SETTLED {
            let logs: Vec<String> = running.iter().map(|process| format!("--- {}\n{}", process.name(), process.end_of_log())).collect();
            bail!("after {} s: {}\n{}", SETTLED.as_secs(), missing.join(", "), logs.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn start_containerd(plane: &ControlPlane, program: &Path) -> Result<Running> {
    let at = plane.dir.join("containerd");
    std::fs::create_dir_all(&at).with_context(|| format!("cannot create {}", at.display()))?;
    let text = format!(
        "version = 3\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
         disabled_plugins = [\"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.tracing\", \"io.containerd.tracing.processor.v1.otlp\"]\n\
         [grpc]\naddress = \"{at}/containerd.sock\"\n\
         [plugins.'io.containerd.cri.v1.runtime']\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\"{at}/cni\"]\nconf_dir = \"{at}/cni\"\n",
        at = at.display()
    );
    let config = certificates::write(&at, "config.toml", &text)?;
    Running::start("containerd", Command::new(program).arg("--config").arg(config), &plane.dir)
}

fn kubelet_flags(plane: &ControlPlane) -> Result<Vec<String>> {
    let at = plane.dir.join("kubelet");
    std::fs::create_dir_all(at.join("manifests")).with_context(|| format!("cannot create {}", at.display()))?;
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication:\n  anonymous: {{enabled: false}}\n  webhook: {{enabled: true, cacheTTL: 2m0s}}\n  x509: {{clientCAFile: {ca}}}\n\
         authorization: {{mode: Webhook}}\ncgroupDriver: cgroupfs\nfailCgroupV1: false\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\n\
         containerRuntimeEndpoint: unix://{socket}\nfailSwapOn: false\nhealthzBindAddress: 127.0.0.1\nhealthzPort: 10248\nmaxPods: 110\n\
         podLogsDir: {at}/logs\nrotateCertificates: true\nseccompDefault: true\nserverTLSBootstrap: true\nstaticPodPath: {at}/manifests\n",
        ca = plane.file("ca.crt"),
        socket = plane.dir.join("containerd/containerd.sock").display(),
        at = at.display()
    );
    let config = certificates::write(&at, "config.yaml", &text)?;
    Ok(vec![
        format!("--config={}", config.display()),
        format!("--kubeconfig={}", plane.file("kubelet.kubeconfig")),
        format!("--root-dir={}", at.display()),
        format!("--cert-dir={}", at.join("pki").display()),
        "--hostname-override=bench".into(),
        "--node-ip=127.0.0.1".into(),
        "--cloud-provider=external".into(),
    ])
}
