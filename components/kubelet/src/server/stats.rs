//! `/stats/summary`, `/metrics/resource`, `/metrics` and `/runningpods`.

use crate::cri::{CriError, v1};
use crate::kubelet::Shared;
use crate::node::facts;
use crate::pod::observe::{LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

fn value(v: Option<&v1::UInt64Value>) -> u64 {
    v.map_or(0, |v| v.value)
}

fn time(nanos: i64) -> String {
    crate::model::time::from_nanos(nanos).to_string()
}

/// Cpu and memory of the whole machine: nanoseconds used and bytes of working set.
fn node_usage() -> (u64, u64) {
    // The first line of /proc/stat counts hundredths of seconds; idle and iowait are not use.
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy: u64 = fields.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, v)| v).sum();
    let memory = facts::memory();
    (busy.saturating_mul(10_000_000), u64::try_from(memory.total - memory.available).unwrap_or(0))
}

fn cpu_json(cpu: Option<&v1::CpuUsage>) -> Value {
    let Some(cpu) = cpu else { return Value::Null };
    json!({"time": time(cpu.timestamp), "usageNanoCores": value(cpu.usage_nano_cores.as_ref()),
        "usageCoreNanoSeconds": value(cpu.usage_core_nano_seconds.as_ref())})
}

fn memory_json(memory: Option<&v1::MemoryUsage>) -> Value {
    let Some(m) = memory else { return Value::Null };
    json!({"time": time(m.timestamp), "workingSetBytes": value(m.working_set_bytes.as_ref()), "usageBytes": value(m.usage_bytes.as_ref()),
        "rssBytes": value(m.rss_bytes.as_ref()), "pageFaults": value(m.page_faults.as_ref()), "majorPageFaults": value(m.major_page_faults.as_ref())})
}

/// The Summary API.
pub async fn summary(shared: &Shared) -> Result<Value, CriError> {
    let mut pods: BTreeMap<String, (Value, Vec<Value>, u64, u64)> = BTreeMap::new();
    for stats in shared.cri.list_container_stats().await? {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let reference = json!({"name": label(LABEL_POD_NAME), "namespace": label(LABEL_POD_NAMESPACE), "uid": label(LABEL_POD_UID)});
        let entry = pods.entry(label(LABEL_POD_UID)).or_insert_with(|| (reference, Vec::new(), 0, 0));
        entry.2 += stats.cpu.as_ref().map_or(0, |c| value(c.usage_core_nano_seconds.as_ref()));
        entry.3 += stats.memory.as_ref().map_or(0, |m| value(m.working_set_bytes.as_ref()));
        let layer = stats.writable_layer.as_ref();
        entry.1.push(json!({
            "name": label(LABEL_CONTAINER_NAME), "cpu": cpu_json(stats.cpu.as_ref()), "memory": memory_json(stats.memory.as_ref()),
            "rootfs": {"usedBytes": layer.map_or(0, |l| value(l.used_bytes.as_ref())), "inodesUsed": layer.map_or(0, |l| value(l.inodes_used.as_ref()))},
        }));
    }
    let now = k8s_client::Time::now().to_string();
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers, cpu, memory)| {
            json!({"podRef": reference, "containers": containers,
                "cpu": {"time": now, "usageCoreNanoSeconds": cpu}, "memory": {"time": now, "workingSetBytes": memory}})
        })
        .collect();
    let (cpu, working_set) = node_usage();
    let memory = facts::memory();
    let disk = facts::filesystem(&shared.config.root_dir);
    Ok(json!({
        "node": {
            "nodeName": shared.config.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "workingSetBytes": working_set, "availableBytes": memory.available},
            "fs": {"time": now, "capacityBytes": disk.size, "availableBytes": disk.available, "usedBytes": disk.size.saturating_sub(disk.available),
                "inodes": disk.inodes, "inodesFree": disk.inodes_free, "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free)},
        },
        "pods": pods,
    }))
}

/// The metrics a metrics server scrapes.
pub async fn resource_metrics(shared: &Shared) -> Result<String, CriError> {
    let stats = shared.cri.list_container_stats().await?;
    let (cpu, memory) = node_usage();
    Ok(render(&stats, cpu, memory))
}

fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn render(stats: &[v1::ContainerStats], node_cpu: u64, node_memory: u64) -> String {
    let (mut cpu, mut memory) = (String::new(), String::new());
    let mut pods: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for s in stats {
        let Some(attributes) = &s.attributes else { continue };
        let label = |key: &str| escape(attributes.labels.get(key).map_or("", String::as_str));
        let labels = format!(
            "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
            label(LABEL_CONTAINER_NAME),
            label(LABEL_POD_NAMESPACE),
            label(LABEL_POD_NAME)
        );
        let total = pods.entry((label(LABEL_POD_NAMESPACE), label(LABEL_POD_NAME))).or_default();
        if let Some(c) = &s.cpu {
            let used = value(c.usage_core_nano_seconds.as_ref());
            total.0 += used;
            let _ = writeln!(cpu, "container_cpu_usage_seconds_total{{{labels}}} {} {}", seconds(used), c.timestamp / 1_000_000);
        }
        if let Some(m) = &s.memory {
            let used = value(m.working_set_bytes.as_ref());
            total.1 += used;
            let _ = writeln!(memory, "container_memory_working_set_bytes{{{labels}}} {used} {}", m.timestamp / 1_000_000);
        }
    }
    let mut text = String::from("# TYPE container_cpu_usage_seconds_total counter\n");
    text.push_str(&cpu);
    text.push_str("# TYPE container_memory_working_set_bytes gauge\n");
    text.push_str(&memory);
    let _ = writeln!(text, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}", seconds(node_cpu));
    let _ = writeln!(text, "# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {node_memory}");
    text.push_str("# TYPE pod_cpu_usage_seconds_total counter\n");
    for ((namespace, pod), (used, _)) in &pods {
        let _ = writeln!(text, "pod_cpu_usage_seconds_total{{namespace=\"{namespace}\",pod=\"{pod}\"}} {}", seconds(*used));
    }
    text.push_str("# TYPE pod_memory_working_set_bytes gauge\n");
    for ((namespace, pod), (_, used)) in &pods {
        let _ = writeln!(text, "pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {used}");
    }
    text.push_str("# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n");
    text
}

/// Metrics of the kubelet itself.
pub fn own_metrics(shared: &Shared) -> String {
    let pods = shared.pods().len();
    let runtime = shared.pleg.pods().map_or(0, |p| p.len());
    format!(
        "# TYPE kubernetes_build_info gauge\nkubernetes_build_info{{git_version=\"{}\"}} 1\n# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {pods}\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {runtime}\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1\n",
        facts::KUBERNETES,
        escape(&shared.config.node_name),
    )
}

/// What the runtime runs, as a list of pods.
pub async fn running_pods(shared: &Shared) -> Result<Value, CriError> {
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for container in shared.cri.list_containers(None).await? {
        if container.state() != v1::ContainerState::ContainerRunning {
            continue;
        }
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let pod = pods.entry(label(LABEL_POD_UID)).or_insert_with(|| {
            json!({"metadata": {"name": label(LABEL_POD_NAME), "namespace": label(LABEL_POD_NAMESPACE), "uid": label(LABEL_POD_UID)},
                "spec": {"containers": []}, "status": {}})
        });
        let image = container.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        if let Some(list) = pod["spec"]["containers"].as_array_mut() {
            list.push(json!({"name": label(LABEL_CONTAINER_NAME), "image": image, "resources": {}}));
        }
    }
    let items: Vec<Value> = pods.into_values().collect();
    Ok(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn resource_metrics_are_prometheus_text() {
        let labels = HashMap::from([(LABEL_CONTAINER_NAME, "c"), (LABEL_POD_NAME, "p"), (LABEL_POD_NAMESPACE, "n\"s")]);
        let stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                ..Default::default()
            }),
            cpu: Some(v1::CpuUsage {
                timestamp: 5_000_000,
                usage_core_nano_seconds: Some(v1::UInt64Value { value: 1_500_000_000 }),
                ..Default::default()
            }),
            memory: Some(v1::MemoryUsage {
                timestamp: 5_000_000,
                working_set_bytes: Some(v1::UInt64Value { value: 7 }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let text = render(&[stats], 2_000_000_000, 9);
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\\\"s\",pod=\"p\"} 1.500000000 5",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\\\"s\",pod=\"p\"} 7 5",
            "node_cpu_usage_seconds_total 2.000000000",
            "pod_memory_working_set_bytes{namespace=\"n\\\"s\",pod=\"p\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
