//! A kubelet on a real containerd: static pods, without an API server, in namespaces of its own.
//!
//! Needs root and a directory with `containerd`, `containerd-shim-runc-v2`, `ctr`, `runc` and a static `busybox`, named by
//! `STRAKE_CONTAINERD_DIR` (or all of them on `PATH`). Without these it prints why it is skipped.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const PROGRAMS: [&str; 5] = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "busybox"];

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The test's own executable is also the kubelet under test.
    if args.get(1).is_some_and(|a| a == "--as-kubelet") {
        return kubelet::main(std::iter::once(OsString::from("kubelet")).chain(args.into_iter().skip(2)));
    }
    if args.iter().any(|a| a == "--list") {
        // What is listed with `--ignored` too, a runner takes for ignored.
        if !args.iter().any(|a| a == "--ignored") {
            println!("static_pods_run_without_an_api_server: test");
        }
        return ExitCode::SUCCESS;
    }
    let programs = match find_programs() {
        Ok(programs) => programs,
        Err(reason) => {
            println!("skipped: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    if args.get(1).is_some_and(|a| a == "--inside") {
        static_pods_run_without_an_api_server(&programs);
        println!("test static_pods_run_without_an_api_server ... ok");
        return ExitCode::SUCCESS;
    }
    // Mounts, processes and the network of the test are its own, and end with it.
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .arg("--inside")
        .status()
        .expect("run unshare");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find_programs() -> Result<PathBuf, String> {
    let is_root = fs::read_to_string("/proc/self/status").unwrap_or_default().lines().any(|l| l.starts_with("Uid:\t0\t0"));
    if !is_root {
        return Err("this test needs root to make namespaces and containers".into());
    }
    let dir = match std::env::var_os("STRAKE_CONTAINERD_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            // Programs on PATH are collected under one directory for containerd to find.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
            dirs.iter()
                .find(|d| d.join("containerd").exists())
                .cloned()
                .ok_or("no containerd on PATH and STRAKE_CONTAINERD_DIR is not set")?
        }
    };
    for program in PROGRAMS {
        if !dir.join(program).exists() {
            return Err(format!("{} has no {program}", dir.display()));
        }
    }
    Ok(dir)
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    dir: tempfile::TempDir,
    programs: PathBuf,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the test's directory")).expect("create a directory");
        // As machined does: a file appears whole.
        let new = path.with_file_name(format!(".{}", path.file_name().expect("a file").to_string_lossy()));
        fs::write(&new, text).expect("write a file");
        fs::rename(&new, &path).expect("rename a file");
    }

    fn log(&self, name: &str) -> Stdio {
        fs::OpenOptions::new().create(true).append(true).open(self.path(name)).expect("open a log").into()
    }

    fn start_containerd(&self) -> Running {
        let root = self.dir.path().display();
        self.write(
            "containerd.toml",
            &format!(
                "version = 3\nroot = \"{root}/c/root\"\nstate = \"{root}/c/state\"\ndisabled_plugins = [\"io.containerd.nri.v1.nri\"]\n[grpc]\naddress = \"{root}/c.sock\"\n\
                 [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
                 [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = \"{root}/cni/bin\"\nconf_dir = \"{root}/cni/conf\"\n\
                 [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"strake.test/stub:v1\"\n"
            ),
        );
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default());
        let child = Command::new(self.programs.join("containerd"))
            .arg("--config")
            .arg(self.path("containerd.toml"))
            .env("PATH", path)
            .stdout(self.log("containerd.log"))
            .stderr(self.log("containerd.log"))
            .spawn()
            .expect("start containerd");
        let running = Running(child);
        self.until("containerd answers", Duration::from_secs(30), || self.ctr(&["version"]).is_some());
        running
    }

    fn ctr(&self, args: &[&str]) -> Option<String> {
        let output = Command::new(self.programs.join("ctr"))
            .arg("-a")
            .arg(self.path("c.sock"))
            .args(["-n", "k8s.io"])
            .args(args)
            .stderr(Stdio::null())
            .output()
            .expect("run ctr");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn start_kubelet(&self) -> Running {
        let root = self.dir.path().display();
        self.write(
            "config.yaml",
            &format!(
                "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\nstaticPodPath: {root}/manifests\n\
                 containerRuntimeEndpoint: unix://{root}/c.sock\npodLogsDir: {root}/logs\nseccompDefault: true\nauthorization: {{mode: AlwaysAllow}}\n\
                 authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n"
            ),
        );
        let child = Command::new(std::env::current_exe().expect("the test's own path"))
            .arg("--as-kubelet")
            .arg(format!("--config={root}/config.yaml"))
            .arg(format!("--root-dir={root}/kubelet"))
            .args(["--hostname-override=node-1", "--node-ip=127.0.0.1", "--v=4"])
            .stdout(self.log("kubelet.log"))
            .stderr(self.log("kubelet.log"))
            .spawn()
            .expect("start the kubelet");
        Running(child)
    }

    fn until(&self, what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while started.elapsed() < limit {
            if done() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for log in ["kubelet.log", "containerd.log"] {
            let text = fs::read_to_string(self.path(log)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- end of {log}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        panic!("did not come to pass within {limit:?}: {what}");
    }

    /// Containers as `name state`.
    fn tasks(&self) -> String {
        self.ctr(&["tasks", "list"]).unwrap_or_default()
    }

    /// Text of the newest log of a container.
    fn log_of(&self, pod: &str, container: &str) -> Option<String> {
        let dir = fs::read_dir(self.path("logs"))
            .ok()?
            .flatten()
            .find(|e| e.file_name().to_string_lossy().starts_with(&format!("kube-system_{pod}-node-1_")))?;
        let mut files: Vec<PathBuf> = fs::read_dir(dir.path().join(container)).ok()?.flatten().map(|e| e.path()).collect();
        files.sort_by_key(|p| p.file_stem().and_then(|n| n.to_string_lossy().parse::<u32>().ok()));
        fs::read_to_string(files.last()?).ok()
    }
}

/// A Docker archive with busybox as its only content.
fn image_archive(busybox: &Path, target: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    let add = |builder: &mut tar::Builder<Vec<u8>>, name: &str, data: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_cksum();
        builder.append_data(&mut header, name, data).expect("add to the layer");
    };
    add(&mut layer, "bin/busybox", &fs::read(busybox).expect("read busybox"), 0o755);
    for applet in ["sh", "sleep", "cat", "echo", "env", "id", "httpd", "wget", "ls", "true", "false", "date"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("add a link");
    }
    let layer = layer.into_inner().expect("finish the layer");
    let digest = sha256(&layer);
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/bin/sleep\",\"2000000000\"],\"Env\":[\"PATH=/bin\"]}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}},\"history\":[]}}"
    );
    let manifest = "[{\"Config\":\"config.json\",\"RepoTags\":[\"strake.test/stub:v1\"],\"Layers\":[\"layer.tar\"]}]";
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, "manifest.json", manifest.as_bytes(), 0o644);
    add(&mut archive, "config.json", config.as_bytes(), 0o644);
    add(&mut archive, "layer.tar", &layer, 0o644);
    fs::write(target, archive.into_inner().expect("finish the archive")).expect("write the archive");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: kube-system, labels: {app: web}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 3
  volumes:
  - {name: work, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  initContainers:
  - name: prepare
    image: strake.test/stub:v1
    command: [sh, -c, "echo from-init > /work/index.html"]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: web
    image: strake.test/stub:v1
    command: [sh, -c, "echo host=$(NODE) uid=$(id -u) labels=`cat /about/labels` sub=`cat /sub/index.html`; exec busybox httpd -f -p 8080 -h /work"]
    env:
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    securityContext: {runAsUser: 1234, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: memory, mountPath: /memory}
    - {name: about, mountPath: /about}
    - {name: work, mountPath: /sub, subPath: pages}
    readinessProbe: {httpGet: {path: /index.html, port: 8080, host: 127.0.0.1}, periodSeconds: 1}
"#;

const CRASH: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: crash, namespace: kube-system}
spec:
  hostNetwork: true
  containers:
  - {name: crash, image: "strake.test/stub:v1", command: [sh, -c, "echo run; exit 3"]}
"#;

fn static_pods_run_without_an_api_server(programs: &Path) {
    let world = World { dir: tempfile::tempdir().expect("a directory"), programs: programs.into() };
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("run ip");
    assert!(up.success(), "bring up the loopback interface");
    fs::create_dir_all(world.path("manifests")).expect("create a directory");
    let archive = world.path("image.tar");
    image_archive(&programs.join("busybox"), &archive);
    let mut containerd = world.start_containerd();
    world.ctr(&["images", "import", "--all-platforms", &archive.to_string_lossy()]).expect("import the image");
    let kubelet = world.start_kubelet();

    // One pod with everything a static pod uses, one that keeps failing.
    world.write("manifests/web.yaml", WEB.trim_start());
    world.write("manifests/crash.yaml", CRASH.trim_start());
    world.until("the web pod serves what its init container wrote", Duration::from_secs(60), || {
        get(8080, "/index.html").is_some_and(|t| t.contains("from-init"))
    });
    world.until("environment, user, volumes are as asked", Duration::from_secs(5), || {
        world.log_of("web", "web").is_some_and(|t| t.contains("host=node-1 uid=1234 labels=app=\"web\""))
    });
    world.until("the failing container is restarted", Duration::from_secs(30), || {
        world.log_of("crash", "crash").is_some_and(|t| t.contains("run")) && crash_restarts(&world) >= 1
    });
    world.until("the kubelet is healthy", Duration::from_secs(10), || get(10248, "/healthz").is_some_and(|t| t.ends_with("ok")));
    let before = world.tasks();
    let web = task_of_port_8080();

    // A restart of the kubelet touches nothing that runs.
    drop(kubelet);
    let kubelet = world.start_kubelet();
    world.until("the kubelet is healthy again", Duration::from_secs(10), || get(10248, "/healthz").is_some_and(|t| t.ends_with("ok")));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(task_of_port_8080(), web, "the web server is still the same process; tasks before:\n{before}\nafter:\n{}", world.tasks());

    // So does a restart of containerd.
    drop(containerd);
    containerd = world.start_containerd();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(task_of_port_8080(), web, "the web server survived containerd's restart");

    // A changed manifest replaces the pod, a removed one ends it and leaves nothing behind.
    world.write("manifests/web.yaml", &WEB.trim_start().replace("from-init", "second-version"));
    world.until("the changed pod has replaced the old one", Duration::from_secs(60), || {
        get(8080, "/index.html").is_some_and(|t| t.contains("second-version"))
    });
    for name in ["web", "crash"] {
        fs::remove_file(world.path(&format!("manifests/{name}.yaml"))).expect("remove a manifest");
    }
    world.until("all pods are gone", Duration::from_secs(60), || {
        get(8080, "/").is_none() && world.ctr(&["containers", "list", "-q"]).is_some_and(|t| t.trim().is_empty())
    });
    world.until("their directories are gone", Duration::from_secs(10), || {
        fs::read_dir(world.path("kubelet/pods")).is_ok_and(|d| d.count() == 0)
            && fs::read_dir(world.path("logs")).is_ok_and(|d| d.count() == 0)
    });
    drop(kubelet);
    drop(containerd);
}

fn crash_restarts(world: &World) -> u32 {
    let Some(dir) = fs::read_dir(world.path("logs"))
        .ok()
        .and_then(|d| d.flatten().find(|e| e.file_name().to_string_lossy().starts_with("kube-system_crash-node-1_")))
    else {
        return 0;
    };
    let names = fs::read_dir(dir.path().join("crash")).into_iter().flatten().flatten();
    names.filter_map(|e| e.path().file_stem().and_then(|s| s.to_string_lossy().parse().ok())).max().unwrap_or(0)
}

/// Process ids of the web server.
fn task_of_port_8080() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .expect("list processes")
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse().ok())
        .filter(|pid: &u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with("busybox\0httpd")))
        .collect();
    pids.sort_unstable();
    assert!(!pids.is_empty(), "no web server runs");
    pids
}

/// The answer to a plain HTTP request on the loopback address.
fn get(port: u16, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}
