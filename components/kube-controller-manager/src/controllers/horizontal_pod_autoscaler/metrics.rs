//! Reads samples from the metrics APIs, which other servers answer through the aggregation layer.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_client::{Client, Error, Method, Quantity, Request, Time, go_duration, null_default};
use serde::Deserialize;

use super::replicas::{Sample, Samples};
use crate::api::NamedMetric;

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Items<T> {
    #[serde(deserialize_with = "null_default", default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMetrics {
    metadata: k8s_client::ObjectMeta,
    timestamp: Time,
    #[serde(default)]
    window: String,
    #[serde(deserialize_with = "null_default", default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(deserialize_with = "null_default", default)]
    usage: BTreeMap<String, Quantity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    #[serde(default)]
    described_object: Described,
    timestamp: Time,
    #[serde(default)]
    window_seconds: Option<u64>,
    value: Quantity,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Described {
    name: String,
}

#[derive(Deserialize)]
struct ExternalValue {
    value: Quantity,
}

/// One resource of the pods that the selector names: of all containers, or of one.
pub async fn of_resource(client: &Client, namespace: &str, selector: &str, resource: &str, container: &str) -> Result<Samples, Error> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let found: Items<PodMetrics> = client.call(&Request::raw(Method::Get, &path).with_query("labelSelector", selector)).await?;
    let sample = |pod: PodMetrics| {
        let mut wanted = pod.containers.iter().filter(|c| container.is_empty() || c.name == container).peekable();
        wanted.peek()?;
        // A pod of which one container was not measured was not measured.
        let value = wanted.try_fold(0_i64, |sum, c| Some(sum.saturating_add(c.usage.get(resource)?.milli_value())))?;
        let window = go_duration(&pod.window).unwrap_or(Duration::from_secs(60));
        Some((pod.metadata.name, Sample { value, at: pod.timestamp, window }))
    };
    Ok(found.items.into_iter().filter_map(sample).collect())
}

/// Asks the newer version of the custom metrics API, and the older one where only that is served.
async fn custom(client: &Client, path: &str, selector: &str, metric: &NamedMetric) -> Result<Vec<MetricValue>, Error> {
    let mut last = None;
    for version in ["v1beta2", "v1beta1"] {
        let mut request = Request::raw(Method::Get, &format!("/apis/custom.metrics.k8s.io/{version}/{path}"));
        if !selector.is_empty() {
            request = request.with_query("labelSelector", selector);
        }
        if let Some(labels) = &metric.metric.selector {
            request = request.with_query("metricLabelSelector", &labels.query());
        }
        match client.call::<Items<MetricValue>>(&request).await {
            Ok(found) => return Ok(found.items),
            Err(error) if error.is_not_found() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    match last {
        Some(error) => Err(error),
        None => Ok(Vec::new()),
    }
}

/// A metric of each of the pods that the selector names.
pub async fn of_pods(client: &Client, namespace: &str, selector: &str, metric: &NamedMetric) -> Result<Samples, Error> {
    let found = custom(client, &format!("namespaces/{namespace}/pods/*/{}", metric.metric.name), selector, metric).await?;
    let sample = |found: MetricValue| {
        let window = Duration::from_secs(found.window_seconds.unwrap_or(60));
        (found.described_object.name, Sample { value: found.value.milli_value(), at: found.timestamp, window })
    };
    Ok(found.into_iter().map(sample).collect())
}

/// A metric of one object, which is named by its resource: `ingresses.networking.k8s.io`.
pub async fn of_object(client: &Client, namespace: &str, resource: &str, name: &str, metric: &NamedMetric) -> Result<Option<i64>, Error> {
    let path = match resource {
        "namespaces" => format!("namespaces/{name}/metrics/{}", metric.metric.name),
        _ => format!("namespaces/{namespace}/{resource}/{name}/{}", metric.metric.name),
    };
    Ok(custom(client, &path, "", metric).await?.first().map(|found| found.value.milli_value()))
}

/// The sum of a metric of something outside the cluster.
pub async fn of_outside(client: &Client, namespace: &str, metric: &NamedMetric) -> Result<Option<i64>, Error> {
    let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}", metric.metric.name);
    let mut request = Request::raw(Method::Get, &path);
    if let Some(labels) = &metric.metric.selector {
        request = request.with_query("labelSelector", &labels.query());
    }
    let found: Items<ExternalValue> = client.call(&request).await?;
    Ok((!found.items.is_empty()).then(|| found.items.iter().fold(0_i64, |sum, item| sum.saturating_add(item.value.milli_value()))))
}
