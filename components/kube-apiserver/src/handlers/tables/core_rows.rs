//! Rows of the core group: pods, services, nodes, events, volumes, quotas.

use super::*;

pub(super) fn pod_row(d: &Doc) -> Row {
    let s = d.at("status");
    let mut reason = match s.get("reason").str() {
        "" => s.get("phase").str().to_owned(),
        r => r.to_owned(),
    };
    let gated =
        d.at("status.conditions").iter().any(|c| c.get("type").str() == "PodScheduled" && c.get("reason").str() == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let (mut restarts, mut ready) = (0, 0);
    let mut last_restart: Option<i64> = None;
    let mut total = d.at("spec.containers").len();
    let note = |c: Ref<'_>, last: &mut Option<i64>| {
        if let Some(t) = c.get("lastState").get("terminated").get("finishedAt").time_seconds() {
            *last = Some(last.map_or(t, |l: i64| l.max(t)));
        }
    };
    let init_specs = d.at("spec.initContainers");
    let sidecar = |n: &str| init_specs.find("name", n).get("restartPolicy").str() == "Always";
    total += init_specs.iter().filter(|c| c.get("restartPolicy").str() == "Always").count();
    let mut initializing = false;
    for (i, c) in s.get("initContainerStatuses").iter().enumerate() {
        restarts += c.get("restartCount").int();
        note(c, &mut last_restart);
        let side = sidecar(c.get("name").str());
        let t = c.get("state").get("terminated");
        if side {
            if c.get("started").bool() {
                if c.get("ready").bool() {
                    ready += 1;
                }
                continue;
            }
        } else if t.exists() && t.get("exitCode").int() == 0 {
            continue;
        }
        let waiting = c.get("state").get("waiting").get("reason").str();
        reason = if t.exists() && !t.get("reason").str().is_empty() {
            format!("Init:{}", t.get("reason").str())
        } else if t.exists() && t.get("signal").int() != 0 {
            format!("Init:Signal:{}", t.get("signal").int())
        } else if t.exists() {
            format!("Init:ExitCode:{}", t.get("exitCode").int())
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init_specs.len())
        };
        initializing = true;
        break;
    }
    let initialized = d.at("status.conditions").find("type", "Initialized").get("status").str() == "True";
    if !initializing || initialized {
        let mut running = false;
        let statuses: Vec<Ref<'_>> = s.get("containerStatuses").iter().collect();
        for c in statuses.iter().rev() {
            restarts += c.get("restartCount").int();
            note(*c, &mut last_restart);
            let (w, t) = (c.get("state").get("waiting").get("reason").str(), c.get("state").get("terminated"));
            if !w.is_empty() {
                reason = w.to_owned();
            } else if t.exists() && !t.get("reason").str().is_empty() {
                reason = t.get("reason").str().to_owned();
            } else if t.exists() && t.get("signal").int() != 0 {
                reason = format!("Signal:{}", t.get("signal").int());
            } else if t.exists() {
                reason = format!("ExitCode:{}", t.get("exitCode").int());
            } else if c.get("ready").bool() && c.get("state").get("running").exists() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let ok = d.at("status.conditions").find("type", "Ready").get("status").str() == "True";
            reason = if ok { "Running".into() } else { "NotReady".into() };
        }
    }
    if d.at("metadata.deletionTimestamp").exists() {
        if s.get("reason").str() == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(s.get("phase").str(), "Failed" | "Succeeded") {
            reason = "Terminating".into();
        }
    }
    let mut shown = restarts.to_string();
    if let Some(t) = last_restart.filter(|_| restarts > 0) {
        shown = format!("{restarts} ({} ago)", duration(Timestamp::now().as_second() - t));
    }
    let none = |r: Ref<'_>| if r.str().is_empty() { json!("<none>") } else { text(r) };
    let gates = d.at("spec.readinessGates");
    let gates = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|g| d.at("status.conditions").find("type", g.get("conditionType").str()).get("status").str() == "True")
            .count();
        format!("{met}/{}", gates.len())
    };
    let phase = s.get("phase").str();
    let conditions = if matches!(phase, "Succeeded" | "Failed") {
        let (reason, message) =
            if phase == "Succeeded" { ("Succeeded", "The pod has completed successfully.") } else { ("Failed", "The pod failed.") };
        vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
    } else {
        Vec::new()
    };
    let cells = vec![
        name(d),
        json!(format!("{ready}/{total}")),
        json!(reason),
        json!(shown),
        age(d),
        none(s.get("podIP")),
        none(d.at("spec.nodeName")),
        none(s.get("nominatedNodeName")),
        json!(gates),
    ];
    Row { cells, conditions }
}

pub(super) fn service(d: &Doc) -> Vec<Value> {
    let s = d.at("spec");
    let kind = s.get("type").str();
    let internal = or(s.get("clusterIP"), "<none>");
    let mut external: Vec<String> = s.get("externalIPs").iter().map(|i| i.str().to_owned()).collect();
    let shown = match kind {
        "ExternalName" => s.get("externalName").str().to_owned(),
        "LoadBalancer" => {
            let mut l: Vec<String> = d
                .at("status.loadBalancer.ingress")
                .iter()
                .map(|i| if i.get("ip").str().is_empty() { i.get("hostname").str() } else { i.get("ip").str() }.to_owned())
                .collect();
            if l.is_empty() && external.is_empty() {
                "<pending>".into()
            } else {
                l.append(&mut external);
                l.join(",")
            }
        }
        _ if external.is_empty() => "<none>".into(),
        _ => external.join(","),
    };
    let ports: Vec<String> = s
        .get("ports")
        .iter()
        .map(|p| match p.get("nodePort").int() {
            0 => format!("{}/{}", p.get("port").int(), p.get("protocol").str()),
            n => format!("{}:{n}/{}", p.get("port").int(), p.get("protocol").str()),
        })
        .collect();
    let ports = if ports.is_empty() { "<none>".into() } else { ports.join(",") };
    vec![name(d), json!(kind), internal, json!(shown), json!(ports), age(d), json!(labels(s.get("selector")))]
}

pub(super) fn node(d: &Doc) -> Vec<Value> {
    let ready = d.at("status.conditions").find("type", "Ready");
    let mut status = match ready.get("status").str() {
        "True" => "Ready".to_owned(),
        "" => "Unknown".into(),
        _ => "NotReady".into(),
    };
    if d.at("spec.unschedulable").bool() {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<String> = d
        .at("metadata.labels")
        .entries()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(r) if !r.is_empty() => Some(r.to_owned()),
            _ if k == "kubernetes.io/role" && !v.str().is_empty() => Some(v.str().to_owned()),
            _ => None,
        })
        .collect();
    roles.sort();
    let roles = if roles.is_empty() { "<none>".into() } else { roles.join(",") };
    let address = |t: &str| {
        d.at("status.addresses")
            .iter()
            .find(|a| a.get("type").str() == t)
            .map_or("<none>".to_owned(), |a| a.get("address").str().to_owned())
    };
    let info = d.at("status.nodeInfo");
    vec![
        name(d),
        json!(status),
        json!(roles),
        age(d),
        text(info.get("kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        or(info.get("osImage"), "<unknown>"),
        or(info.get("kernelVersion"), "<unknown>"),
        or(info.get("containerRuntimeVersion"), "<unknown>"),
    ]
}

pub(super) fn endpoints(d: &Doc) -> String {
    let mut all = Vec::new();
    for s in d.at("subsets").iter() {
        let ports: Vec<i64> = s.get("ports").iter().map(|p| p.get("port").int()).collect();
        for a in s.get("addresses").iter() {
            let ip = a.get("ip").str();
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|p| if ip.contains(':') { format!("[{ip}]:{p}") } else { format!("{ip}:{p}") }));
        }
    }
    match all.len() {
        0 => "<none>".into(),
        n if n > 3 => format!("{} + {} more...", all[..3].join(","), n - 3),
        _ => all.join(","),
    }
}

pub(super) fn event(d: &Doc) -> Vec<Value> {
    let either = |a: &str, b: &str| if d.at(a).exists() { d.at(a) } else { d.at(b) };
    let series = d.at("series");
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first = if first.time_seconds().is_some() { since(first) } else { since(d.at("eventTime")) };
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let last = if series.exists() {
        since(series.get("lastObservedTime"))
    } else if last.time_seconds().is_some() {
        since(last)
    } else {
        first.clone()
    };
    let n = if series.exists() { series.get("count").int() } else { either("count", "deprecatedCount").int().max(1) };
    let object = either("involvedObject", "regarding");
    let source = either("source", "deprecatedSource");
    let component = match source.get("component").str() {
        "" => either("reportingComponent", "reportingController").str(),
        c => c,
    };
    let host = match source.get("host").str() {
        "" => d.at("reportingInstance").str(),
        h => h,
    };
    let shown = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    let target = if object.get("name").str().is_empty() {
        object.get("kind").str().to_lowercase()
    } else {
        format!("{}/{}", object.get("kind").str().to_lowercase(), object.get("name").str())
    };
    vec![
        last,
        text(d.at("type")),
        text(d.at("reason")),
        json!(target),
        text(object.get("fieldPath")),
        json!(shown),
        json!(either("message", "note").str().trim()),
        first,
        count(n),
        name(d),
    ]
}

pub(super) fn access_modes(r: Ref<'_>) -> String {
    let short = |m: &str| match m {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let there = strings(r);
    ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
        .iter()
        .filter(|m| there.contains(*m))
        .map(|m| short(m))
        .collect::<Vec<_>>()
        .join(",")
}

pub(super) fn claim(d: &Doc) -> Vec<Value> {
    let phase = if d.at("metadata.deletionTimestamp").exists() { "Terminating" } else { d.at("status.phase").str() };
    let bound = !d.at("spec.volumeName").str().is_empty();
    let (modes, storage) = if bound {
        (access_modes(d.at("status.accessModes")), d.at("status.capacity").get("storage").str().to_owned())
    } else {
        (String::new(), String::new())
    };
    vec![
        name(d),
        json!(phase),
        text(d.at("spec.volumeName")),
        json!(storage),
        json!(modes),
        text(d.at("spec.storageClassName")),
        or(d.at("spec.volumeAttributesClassName"), "<unset>"),
        age(d),
        or(d.at("spec.volumeMode"), "<unset>"),
    ]
}

pub(super) fn volume(d: &Doc) -> Vec<Value> {
    let phase = if d.at("metadata.deletionTimestamp").exists() { "Terminating" } else { d.at("status.phase").str() };
    let c = d.at("spec.claimRef");
    let claim = if c.exists() { format!("{}/{}", c.get("namespace").str(), c.get("name").str()) } else { String::new() };
    vec![
        name(d),
        text(d.at("spec.capacity").get("storage")),
        json!(access_modes(d.at("spec.accessModes"))),
        text(d.at("spec.persistentVolumeReclaimPolicy")),
        json!(phase),
        json!(claim),
        text(d.at("spec.storageClassName")),
        or(d.at("spec.volumeAttributesClassName"), "<unset>"),
        text(d.at("status.reason")),
        age(d),
        or(d.at("spec.volumeMode"), "<unset>"),
    ]
}

pub(super) fn quota(d: &Doc) -> Vec<Value> {
    let (mut request, mut limit) = (Vec::new(), Vec::new());
    let mut hard: Vec<(&str, Ref<'_>)> = d.at("status.hard").entries().collect();
    hard.sort_by_key(|(k, _)| *k);
    for (k, q) in hard {
        let used = d.at("status.used").get(k);
        let used = if used.str().is_empty() { "0" } else { used.str() };
        let line = format!("{k}: {used}/{}", q.str());
        if k.starts_with("limits") { limit.push(line) } else { request.push(line) }
    }
    vec![name(d), json!(request.join(", ")), json!(limit.join(", ")), age(d)]
}

pub(super) fn selector_or_map(d: &Doc) -> String {
    let s = d.at("spec.selector");
    if d.kind() == "ReplicationController" { labels(s) } else { selector(s) }
}
