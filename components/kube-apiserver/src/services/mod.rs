//! What the server gives to Services: cluster IPs, recorded as IPAddress objects, and node ports, recorded in a bitmap, both in etcd
//! so that several API servers never give out the same one.

mod node_ports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use k8s_schema::Doc;
use rand::RngExt;
use serde_json::{Value, json};

pub use node_ports::NodePorts;

use crate::{
    handlers::{Ctx, write},
    http::{ApiError, Group},
    registry::Resource,
    server::Server,
    storage::StoreError,
    validation::{ErrorList, FieldError},
};

/// What a write holds until it is known whether it happened.
#[must_use = "a claim is kept or released"]
pub struct Claim<'a> {
    server: &'a Server,
    ips: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Claim<'_> {
    pub fn keep(&mut self) {
        self.ips.clear();
        self.ports.clear();
    }

    pub async fn release(&mut self) {
        give_back(self.server, &std::mem::take(&mut self.ips), &std::mem::take(&mut self.ports)).await;
    }
}

async fn give_back(server: &Server, ips: &[IpAddr], ports: &[u16]) {
    for ip in ips {
        let key = ip_key(server, *ip);
        match server.etcd.get(&key).await {
            Ok((Some(kv), _)) => {
                if let Err(e) = server.etcd.delete(&key, kv.rev).await {
                    tracing::warn!(%ip, error = %e, "a cluster IP was not given back");
                }
            }
            Ok((None, _)) => {}
            Err(e) => tracing::warn!(%ip, error = %e, "a cluster IP was not given back"),
        }
    }
    if !ports.is_empty()
        && let Err(e) = server.node_ports.release(server, ports).await
    {
        tracing::warn!(?ports, error = %e, "node ports were not given back");
    }
}

fn is_service(res: &Resource) -> bool {
    res.plural == "services" && res.group.is_empty()
}

fn ip_key(server: &Server, ip: IpAddr) -> String {
    format!("{}ipaddresses/{ip}", server.root)
}

fn address_object(server: &Server, ip: IpAddr, namespace: &str, name: &str) -> Result<bytes::Bytes, ApiError> {
    let schema = &server.objects.schema;
    let mut d = Doc::of_kind(schema, "networking.k8s.io", "v1", "IPAddress").ok_or_else(|| ApiError::internal("no type IPAddress"))?;
    let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    d.set(
        "metadata",
        json!({"name": ip.to_string(), "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": write::now(),
            "labels": {"ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}}),
    )
    .map_err(ApiError::internal)?;
    d.set("spec", json!({"parentRef": {"resource": "services", "namespace": namespace, "name": name}})).map_err(ApiError::internal)?;
    Ok(d.to_protobuf().into())
}

/// Records that `ip` belongs to a Service. False: it belongs to another.
pub async fn record_ip(server: &Server, ip: IpAddr, namespace: &str, name: &str) -> Result<bool, ApiError> {
    let value = address_object(server, ip, namespace, name)?;
    match server.etcd.create(&ip_key(server, ip), value, 0).await {
        Ok(_) => Ok(true),
        Err(StoreError::Exists { .. }) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The ranges that cluster IPs come from: those of the flags and of every ready ServiceCIDR.
fn ranges(server: &Server) -> Vec<IpNet> {
    let mut all = server.service_ranges.clone();
    for s in server.objects.list("servicecidrs", "") {
        let Some(d) = server.objects.doc(&s) else { continue };
        if d.at("metadata.deletionTimestamp").exists() {
            continue;
        }
        all.extend(d.at("spec.cidrs").iter().filter_map(|c| c.str().parse::<IpNet>().ok()));
    }
    all.sort();
    all.dedup();
    all
}

/// How many addresses of a range can be given out, and the `n`th of them.
fn size(net: &IpNet) -> u128 {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len()).min(64);
    let all = 1u128 << bits;
    // The network address, and of IPv4 the broadcast address, are nobody's.
    all.saturating_sub(if net.addr().is_ipv4() { 2 } else { 1 })
}

fn nth(net: &IpNet, n: u128) -> IpAddr {
    match net.network() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).wrapping_add(u32::try_from(n + 1).unwrap_or(1)))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).wrapping_add(n + 1))),
    }
}

/// Takes any free address of `family`, first outside the lower part, which is left for addresses that people choose.
async fn any_ip(server: &Server, v6: bool, namespace: &str, name: &str) -> Result<Option<IpAddr>, ApiError> {
    let cache = server.objects.reflector.cache("ipaddresses");
    for net in ranges(server).iter().filter(|n| n.addr().is_ipv6() == v6) {
        let size = size(net);
        let offset = if size >= 64 { (size / 16).clamp(16, 256) } else { 0 };
        let start = rand::rng().random_range(offset..size.max(offset + 1));
        let upper = (start..size).chain(offset..start).take(70_000);
        for n in upper.chain(0..offset) {
            let ip = nth(net, n);
            if cache.as_ref().is_some_and(|c| c.get(&ip.to_string()).is_some()) {
                continue;
            }
            if record_ip(server, ip, namespace, name).await? {
                return Ok(Some(ip));
            }
        }
    }
    Ok(None)
}

fn invalid(doc: &Doc, e: FieldError) -> ApiError {
    let mut l = ErrorList::new();
    l.push(e);
    ApiError::invalid(Group("", "Service"), doc.at("metadata.name").str(), &l)
}

/// Fills in families, addresses and ports of a new Service.
pub async fn claim_for_create<'a>(ctx: &'a Ctx, res: &Resource, doc: &mut Doc, dry_run: bool) -> Result<Claim<'a>, ApiError> {
    let mut claim = Claim { server: &ctx.server, ips: Vec::new(), ports: Vec::new() };
    if !is_service(res) {
        return Ok(claim);
    }
    let result = fill(ctx, doc, None, dry_run, &mut claim).await;
    match result {
        Ok(()) => Ok(claim),
        Err(e) => {
            claim.release().await;
            Err(e)
        }
    }
}

/// The same for a Service that changes its type or its ports. What it no longer uses is given back.
pub async fn claim_for_update<'a>(ctx: &'a Ctx, res: &Resource, new: &mut Doc, old: &Doc, dry_run: bool) -> Result<Claim<'a>, ApiError> {
    let mut claim = Claim { server: &ctx.server, ips: Vec::new(), ports: Vec::new() };
    if !is_service(res) || !ctx.info.subresource.is_empty() {
        return Ok(claim);
    }
    // What the client left out stays as it was given.
    let (was, is) = (old.at("spec.type").str().to_owned(), new.at("spec.type").str().to_owned());
    if is != "ExternalName" && was != "ExternalName" {
        for f in ["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if !new.at(f).exists() || new.at(f).is_zero() {
                super::kinds::restore(new, old, f);
            }
        }
        // A client that changes only the single field means the first of the list.
        let first = |d: &Doc| d.at("spec.clusterIP").str().to_owned();
        if first(new) != first(old) && new.at("spec.clusterIPs").semantic_eq(old.at("spec.clusterIPs")) {
            return Err(invalid(new, FieldError::invalid("spec.clusterIPs[0]", json!([first(new)]), "may not change once set")));
        }
        let needs = |t: &str| matches!(t, "NodePort" | "LoadBalancer");
        if needs(&was) && needs(&is) {
            keep_node_ports(new, old);
        }
    } else if is == "ExternalName" {
        for f in ["spec.clusterIP", "spec.clusterIPs", "spec.ipFamilies", "spec.ipFamilyPolicy"] {
            new.remove(f);
        }
    }
    match fill(ctx, new, Some(old), dry_run, &mut claim).await {
        Ok(()) => Ok(claim),
        Err(e) => {
            claim.release().await;
            Err(e)
        }
    }
}

fn keep_node_ports(new: &mut Doc, old: &Doc) {
    let used: Vec<(i64, String, i64)> =
        old.at("spec.ports").iter().map(|p| (p.get("port").int(), p.get("protocol").str().to_owned(), p.get("nodePort").int())).collect();
    let taken: Vec<i64> = new.at("spec.ports").iter().map(|p| p.get("nodePort").int()).filter(|n| *n != 0).collect();
    let kept = new.for_each("spec.ports", |mut p| {
        if p.get("nodePort").int() != 0 {
            return Ok(());
        }
        let id = (p.get("port").int(), p.get("protocol").str().to_owned());
        match used.iter().find(|(port, protocol, node)| (*port, protocol) == (id.0, &id.1) && *node != 0 && !taken.contains(node)) {
            Some((_, _, node)) => p.set("nodePort", *node),
            None => Ok::<_, k8s_schema::EditError>(()),
        }
    });
    if let Err(e) = kept {
        tracing::error!(error = %e, "a node port does not fit");
    }
}

async fn fill(ctx: &Ctx, doc: &mut Doc, old: Option<&Doc>, dry_run: bool, claim: &mut Claim<'_>) -> Result<(), ApiError> {
    let kind = doc.at("spec.type").str().to_owned();
    let internal = |e: k8s_schema::EditError| ApiError::internal(e);
    let (ns, name) = (doc.at("metadata.namespace").str().to_owned(), doc.at("metadata.name").str().to_owned());
    if kind == "ExternalName" {
        return Ok(());
    }
    let available: Vec<bool> = ctx.server.service_ranges.iter().map(|n| n.addr().is_ipv6()).collect();
    check_addresses(&available, doc, old.is_none()).map_err(|e| invalid(doc, e))?;
    families(&ctx.server, doc)?;
    let had: Vec<String> = old.map(|o| o.at("spec.clusterIPs").iter().map(|i| i.str().to_owned()).collect()).unwrap_or_default();
    let first = doc.at("spec.clusterIP").str().to_owned();
    let mut listed: Vec<String> = doc.at("spec.clusterIPs").iter().map(|i| i.str().to_owned()).collect();
    if listed.is_empty() && !first.is_empty() {
        listed.push(first.clone());
    } else if !listed.is_empty() && first.is_empty() && old.is_none() {
        // The list alone names no primary address.
    } else if let (Some(l), false) = (listed.first(), first.is_empty())
        && *l != first
        && had.first() != Some(l)
    {
        return Err(invalid(doc, FieldError::invalid("spec.clusterIPs", json!(listed), "first value must match `clusterIP`")));
    }
    if listed.first().is_some_and(|i| i == "None") {
        doc.set("spec.clusterIP", "None").map_err(internal)?;
        doc.set("spec.clusterIPs", json!(["None"])).map_err(internal)?;
    } else {
        let wanted: Vec<bool> = doc.at("spec.ipFamilies").iter().map(|f| f.str() == "IPv6").collect();
        for (i, v6) in wanted.iter().enumerate() {
            match listed.get(i).filter(|l| !l.is_empty()).cloned() {
                Some(ip) if had.contains(&ip) => {}
                Some(ip) => {
                    let addr: IpAddr = ip.parse().map_err(|_| {
                        invalid(
                            doc,
                            FieldError::invalid(
                                format!("spec.clusterIPs[{i}]"),
                                ip.as_str(),
                                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                            ),
                        )
                    })?;
                    let shown = json!(listed);
                    // The first address of a range, and of IPv4 the last, are nobody's.
                    let edge = |r: &IpNet| addr == r.network() || (addr.is_ipv4() && addr == r.broadcast());
                    if !ranges(&ctx.server).iter().any(|r| r.contains(&addr) && !edge(r)) {
                        let m = format!("failed to allocate IP {ip}: the provided network does not match the current range");
                        return Err(invalid(doc, FieldError::invalid("spec.clusterIPs", shown, m)));
                    }
                    let taken = if dry_run {
                        ctx.server.objects.reflector.cache("ipaddresses").is_some_and(|c| c.get(&ip).is_some())
                    } else {
                        !record_ip(&ctx.server, addr, &ns, &name).await?
                    };
                    if taken {
                        let m = format!("failed to allocate IP {ip}: provided IP is already allocated");
                        return Err(invalid(doc, FieldError::invalid("spec.clusterIPs", shown, m)));
                    }
                    if !dry_run {
                        claim.ips.push(addr);
                    }
                }
                None => {
                    let ip = any_ip(&ctx.server, *v6, &ns, &name).await?;
                    let ip = ip.ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))?;
                    claim.ips.push(ip);
                    if listed.len() > i { listed[i] = ip.to_string() } else { listed.push(ip.to_string()) }
                }
            }
        }
        if let Some(f) = listed.first() {
            doc.set("spec.clusterIP", f.as_str()).map_err(internal)?;
        }
        doc.set("spec.clusterIPs", json!(listed)).map_err(internal)?;
    }
    ports(ctx, doc, old, &kind, dry_run, claim).await?;
    if dry_run {
        // A dry run shows what it would get and keeps nothing.
        let (ips, ports) = (std::mem::take(&mut claim.ips), std::mem::take(&mut claim.ports));
        give_back(&ctx.server, &ips, &ports).await;
    }
    Ok(())
}

/// What is wrong with the addresses and families that a client asks for, before any is taken. `available`: of each range, whether it is
/// of IPv6.
fn check_addresses(available: &[bool], doc: &Doc, new: bool) -> Result<(), FieldError> {
    let spec = doc.at("spec");
    let (first, listed): (&str, Vec<&str>) = (spec.get("clusterIP").str(), spec.get("clusterIPs").strings().collect());
    let all = |why: &str| Err(FieldError::invalid("spec.clusterIPs", json!(listed), why));
    let policy = spec.get("ipFamilyPolicy").str();
    let families: Vec<&str> = spec.get("ipFamilies").strings().collect();
    const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        return Err(FieldError::not_supported("spec.ipFamilyPolicy", policy, POLICIES));
    }
    if let Some(i) = (1..families.len()).find(|i| families[..*i].contains(&families[*i])) {
        return Err(FieldError::duplicate(format!("spec.ipFamilies[{i}]"), families[i]));
    }
    if families.len() > 1 && !matches!(policy, "PreferDualStack" | "RequireDualStack") {
        let why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
        return Err(FieldError::invalid("spec.ipFamilyPolicy", "SingleStack", why));
    }
    // A Service without a selector may have endpoints of any family.
    let headless = first == "None" && spec.get("selector").is_empty();
    let dual = available.contains(&true) && available.contains(&false);
    if policy == "RequireDualStack" && !dual && !headless {
        return Err(FieldError::invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services"));
    }
    if listed.len() > 2 {
        return all("may only hold up to 2 values");
    }
    if listed.len() > 1 && listed.contains(&"None") {
        return all("'None' must be the first and only value");
    }
    if new && first.is_empty() && !listed.is_empty() {
        return all("must be empty when `clusterIP` is not specified");
    }
    if new && !listed.is_empty() && listed[0] != first {
        return all("first value must match `clusterIP`");
    }
    let asked: Vec<&str> = if listed.is_empty() { vec![first] } else { listed.clone() };
    let mut seen: Vec<bool> = Vec::new();
    for (i, ip) in asked.iter().enumerate().filter(|(_, ip)| !matches!(**ip, "" | "None")) {
        let path = format!("spec.clusterIPs[{i}]");
        let Ok(address) = ip.parse::<IpAddr>() else {
            let octets: Vec<&str> = ip.split('.').collect();
            let padded = octets.len() == 4 && octets.iter().all(|o| o.parse::<u8>().is_ok());
            let why = if padded { "must not have leading 0s" } else { "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)" };
            return Err(FieldError::invalid(path, *ip, why));
        };
        if seen.contains(&address.is_ipv6()) {
            return all("may specify no more than one IP for each IP family");
        }
        seen.push(address.is_ipv6());
        if !available.contains(&address.is_ipv6()) {
            let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(FieldError::invalid(path, json!(asked), format!("{family} is not configured on this cluster")));
        }
    }
    Ok(())
}

fn families(server: &Server, doc: &mut Doc) -> Result<(), ApiError> {
    let internal = |e: k8s_schema::EditError| ApiError::internal(e);
    let available: Vec<&str> = server.service_ranges.iter().map(|n| if n.addr().is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let mut list: Vec<String> = doc.at("spec.ipFamilies").iter().map(|f| f.str().to_owned()).collect();
    let policy = doc.at("spec.ipFamilyPolicy").str().to_owned();
    if list.is_empty() {
        for ip in doc.at("spec.clusterIPs").iter().map(|i| i.str().to_owned()).chain([doc.at("spec.clusterIP").str().to_owned()]) {
            if let Ok(a) = ip.parse::<IpAddr>() {
                let f = if a.is_ipv4() { "IPv4" } else { "IPv6" };
                if !list.iter().any(|l| l == f) {
                    list.push(f.to_owned());
                }
            }
        }
    }
    for (i, f) in list.iter().enumerate() {
        if !matches!(f.as_str(), "IPv4" | "IPv6") {
            return Err(invalid(doc, FieldError::not_supported(format!("spec.ipFamilies[{i}]"), f.as_str(), &["IPv4", "IPv6"])));
        }
        if !available.contains(&f.as_str()) {
            return Err(invalid(doc, FieldError::invalid(format!("spec.ipFamilies[{i}]"), f.as_str(), "not configured on this cluster")));
        }
    }
    // The endpoints of a headless Service without a selector are its owner's, of whatever family.
    let unselected = doc.at("spec.clusterIP").str() == "None" && doc.at("spec.selector").is_empty();
    let both_wanted = match policy.as_str() {
        "RequireDualStack" => list.len() < 2,
        // Who names a family without a policy wants that one.
        "" => list.is_empty(),
        _ => false,
    };
    if unselected && both_wanted {
        let first = list.first().cloned().or_else(|| available.first().map(|f| (*f).to_owned())).unwrap_or_default();
        let other = if first == "IPv4" { "IPv6" } else { "IPv4" };
        doc.set("spec.ipFamilyPolicy", "RequireDualStack").map_err(internal)?;
        return doc.set("spec.ipFamilies", json!([first, other])).map_err(internal);
    }
    if list.is_empty() {
        list.extend(available.first().map(|f| (*f).to_owned()));
    }
    let dual = available.len() > 1 && matches!(policy.as_str(), "PreferDualStack" | "RequireDualStack");
    if policy == "RequireDualStack" && available.len() < 2 {
        return Err(invalid(
            doc,
            FieldError::invalid("spec.ipFamilyPolicy", policy.as_str(), "this cluster is not configured for dual-stack services"),
        ));
    }
    if dual && list.len() == 1 {
        list.extend(available.iter().find(|f| **f != list[0]).map(|f| (*f).to_owned()));
    }
    if policy.is_empty() {
        doc.set("spec.ipFamilyPolicy", if list.len() > 1 { "PreferDualStack" } else { "SingleStack" }).map_err(internal)?;
    }
    doc.set("spec.ipFamilies", json!(list)).map_err(internal)
}

async fn ports(ctx: &Ctx, doc: &mut Doc, old: Option<&Doc>, kind: &str, dry_run: bool, claim: &mut Claim<'_>) -> Result<(), ApiError> {
    let needs = kind == "NodePort" || (kind == "LoadBalancer" && doc.at("spec.allocateLoadBalancerNodePorts").as_bool() != Some(false));
    let had: Vec<i64> = old.map(|o| o.at("spec.ports").iter().map(|p| p.get("nodePort").int()).collect()).unwrap_or_default();
    let asked: Vec<(i64, String)> =
        doc.at("spec.ports").iter().map(|p| (p.get("nodePort").int(), p.get("protocol").str().to_owned())).collect();
    let mut values: Vec<Value> = doc.at("spec.ports").iter().map(|p| p.to_value()).collect();
    let mut own: Vec<(i64, String)> = Vec::new();
    let server = &ctx.server;
    let mut changed = false;
    for (i, (port, protocol)) in asked.iter().enumerate() {
        if *port != 0 {
            if !matches!(kind, "NodePort" | "LoadBalancer") || had.contains(port) || own.iter().any(|(p, x)| p == port && x != protocol) {
                own.push((*port, protocol.clone()));
                continue;
            }
            let path = format!("spec.ports[{i}].nodePort");
            let number = u16::try_from(*port).ok().filter(|p| server.node_ports.contains(*p));
            let Some(number) = number else {
                let m = format!("provided port is not in the valid range. The range of valid ports is {}", server.node_ports);
                return Err(invalid(doc, FieldError::invalid(path, *port, m)));
            };
            if dry_run {
                if server.node_ports.is_taken(server, number).await? {
                    return Err(invalid(doc, FieldError::invalid(path, *port, "provided port is already allocated")));
                }
            } else if server.node_ports.take(server, Some(number)).await?.is_none_or(|p| p != number) {
                return Err(invalid(doc, FieldError::invalid(path, *port, "provided port is already allocated")));
            } else {
                claim.ports.push(number);
            }
            own.push((*port, protocol.clone()));
        } else if needs {
            // One number serves all protocols of the same port.
            let same = doc.at("spec.ports").index(i).get("port").int();
            let shared = values
                .iter()
                .find(|v| v["port"] == json!(same) && v["nodePort"].as_i64().unwrap_or(0) != 0 && v["protocol"] != json!(protocol));
            let number = match shared.and_then(|v| v["nodePort"].as_i64()) {
                Some(n) => n,
                None => {
                    let n = server.node_ports.take(server, None).await?;
                    let n = n.ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
                    claim.ports.push(n);
                    i64::from(n)
                }
            };
            values[i]["nodePort"] = number.into();
            changed = true;
        }
    }
    if changed {
        doc.set("spec.ports", Value::from(values)).map_err(ApiError::internal)?;
    }
    let etp = doc.at("spec.externalTrafficPolicy").str() == "Local";
    if kind == "LoadBalancer" && etp {
        let was = old.map_or(0, |o| o.at("spec.healthCheckNodePort").int());
        let asked = doc.at("spec.healthCheckNodePort").int();
        if asked != 0 && asked != was {
            let number = u16::try_from(asked).ok().filter(|p| server.node_ports.contains(*p));
            let failed = |why: &str| ApiError::internal(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}"));
            let Some(number) = number else {
                let why = format!("provided port is not in the valid range. The range of valid ports is {}", server.node_ports);
                return Err(failed(&why));
            };
            let taken = match dry_run {
                true => server.node_ports.is_taken(server, number).await?,
                false => server.node_ports.take(server, Some(number)).await?.is_none_or(|p| p != number),
            };
            if taken {
                return Err(failed("provided port is already allocated"));
            }
            if !dry_run {
                claim.ports.push(number);
            }
        } else if asked == 0 {
            let n = if was != 0 {
                was
            } else {
                let n = server
                    .node_ports
                    .take(server, None)
                    .await?
                    .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))?;
                claim.ports.push(n);
                i64::from(n)
            };
            doc.set("spec.healthCheckNodePort", n).map_err(ApiError::internal)?;
        }
    }
    Ok(())
}

fn node_ports_of(d: &Doc) -> Vec<u16> {
    d.at("spec.ports")
        .iter()
        .map(|p| p.get("nodePort").int())
        .chain([d.at("spec.healthCheckNodePort").int()])
        .filter_map(|p| u16::try_from(p).ok().filter(|p| *p > 0))
        .collect()
}

/// Gives back everything a deleted Service had.
pub async fn released(ctx: &Ctx, res: &Resource, doc: &Doc) {
    if !is_service(res) {
        return;
    }
    let ips: Vec<IpAddr> = doc.at("spec.clusterIPs").iter().filter_map(|i| i.str().parse().ok()).collect();
    give_back(&ctx.server, &ips, &node_ports_of(doc)).await;
}

/// Makes the records agree with the Services that exist: after a crash some may be missing, others be nobody's.
pub async fn repair(server: &Server) -> Result<(), ApiError> {
    let mut ports = Vec::new();
    let mut used = Vec::new();
    for s in server.objects.list("services/specs", "") {
        let Some(d) = server.objects.doc(&s) else { continue };
        ports.extend(node_ports_of(&d));
        for ip in d.at("spec.clusterIPs").iter().filter_map(|i| i.str().parse::<IpAddr>().ok()) {
            used.push(ip.to_string());
            if server.objects.reflector.cache("ipaddresses").is_none_or(|c| c.get(&ip.to_string()).is_none()) {
                record_ip(server, ip, s.namespace(), s.name()).await?;
            }
        }
    }
    for a in server.objects.list("ipaddresses", "") {
        let managed = a.label("ipaddress.kubernetes.io/managed-by") == Some("ipallocator.k8s.io");
        if managed && !used.iter().any(|u| *u == *a.key) {
            let young = server.objects.doc(&a).and_then(|d| d.at("metadata.creationTimestamp").time_seconds());
            // A service that is just being created has its address before it is stored.
            if young.is_some_and(|t| t + 60 < jiff::Timestamp::now().as_second()) {
                let key = format!("{}ipaddresses/{}", server.root, a.key);
                match server.etcd.delete(&key, a.rev).await {
                    Ok(_) | Err(StoreError::Changed { .. }) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }
    server.node_ports.repair(server, &ports).await
}

/// Whether anything is known about what is behind a service.
pub fn has_slices(objects: &crate::objects::Objects, namespace: &str, service: &str) -> bool {
    objects.list("endpointslices", &format!("{namespace}/")).iter().any(|s| s.label("kubernetes.io/service-name") == Some(service))
}

/// Some ready endpoint of a service.
pub fn endpoint(objects: &crate::objects::Objects, namespace: &str, service: &str, port_name: &str) -> Option<(String, u16)> {
    let slices = objects.list("endpointslices", &format!("{namespace}/"));
    let of_service = slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service));
    of_service.filter_map(|s| objects.doc(s)).find_map(|d| {
        let port = d.at("ports").iter().find(|p| p.get("name").str() == port_name)?.get("port").as_i64()?;
        let ready = d.at("endpoints").iter().find(|e| e.get("conditions").get("ready").as_bool() != Some(false))?;
        Some((ready.get("addresses").iter().next()?.str().to_owned(), u16::try_from(port).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_counted_without_network_and_broadcast() {
        let n: IpNet = "10.96.0.0/24".parse().unwrap();
        assert_eq!((size(&n), nth(&n, 0).to_string(), nth(&n, 253).to_string()), (254, "10.96.0.1".into(), "10.96.0.254".into()));
        let n: IpNet = "fd00::/112".parse().unwrap();
        assert_eq!((size(&n), nth(&n, 0).to_string()), (65535, "fd00::1".into()));
    }
}
