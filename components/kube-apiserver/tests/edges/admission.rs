//! Admission plugins that are off by default and take a configuration.

use hyper::Method;
use serde_json::json;

use super::{reviews::Hook, *};

fn write(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// The administrator's client, that does not ask again by itself.
async fn hasty(cluster: &Cluster) -> Client {
    let kubeconfig = Kubeconfig::read_from(cluster.dir.join("admin.kubeconfig")).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn pod(name: &str, image: &str, more: Value) -> Value {
    let mut v =
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": image}], "automountServiceAccountToken": false}});
    for (k, m) in more.as_object().into_iter().flatten() {
        v["spec"][k] = m.clone();
    }
    v
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_that_are_turned_on_do_what_their_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    let images = Hook::start(&path("images"), |spec| match spec["containers"][0]["image"].as_str() {
        Some("bad") => json!({"allowed": false, "reason": "not this one"}),
        Some("odd") => json!({"allowed": false}),
        _ => json!({"allowed": true, "auditAnnotations": {"seen": "yes"}}),
    })
    .await;
    write(
        &path("limits.yaml"),
        "apiVersion: eventratelimit.admission.k8s.io/v1alpha1\nkind: Configuration\n\
         limits: [{type: Namespace, qps: 1, burst: 3, cacheSize: 10}]\n",
    );
    write(
        &path("admission.yaml"),
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n\
         - {name: EventRateLimit, path: limits.yaml}\n\
         - name: ImagePolicyWebhook\n  configuration: {imagePolicy: {kubeConfigFile: images, allowTTL: 600, denyTTL: -1, retryBackoff: 10}}\n\
         - name: PodTolerationRestriction\n  configuration:\n    apiVersion: podtolerationrestriction.admission.k8s.io/v1alpha1\n    \
         kind: Configuration\n    default: [{key: cluster, operator: Exists}]\n",
    );
    let on = "EventRateLimit,ImagePolicyWebhook,NamespaceAutoProvision,PodTolerationRestriction";
    let flags =
        vec![format!("--enable-admission-plugins={on}"), format!("--admission-control-config-file={}", path("admission.yaml").display())];
    let cluster = start(&dir, flags).await;
    let client = client(&cluster, "admin").await;

    // A namespace is made by what is created in it, if it can have that name; nothing is made for a question.
    let map = json!({"metadata": {"name": "m"}});
    let dry = send(&client, Method::POST, "/api/v1/namespaces/fresh/configmaps?dryRun=All", &[], &map).await;
    assert_eq!((dry.code, get(&client, "/api/v1/namespaces/fresh", &[]).await.code), (404, 404));
    done(&client, Method::POST, "/api/v1/namespaces/fresh/configmaps", map.clone()).await;
    let fresh = done(&client, Method::GET, "/api/v1/namespaces/fresh", Value::Null).await;
    assert_eq!((&fresh["status"]["phase"], &fresh["spec"]["finalizers"]), (&json!("Active"), &json!(["kubernetes"])));
    let bad = send(&client, Method::POST, "/api/v1/namespaces/Not_A_Name/configmaps", &[], &map).await;
    assert_eq!((bad.code, &bad.json()["reason"]), (403, &json!("Forbidden")));
    let updated = send(&client, Method::PUT, "/api/v1/namespaces/nowhere/configmaps/m", &[], &map).await;
    assert_ne!(updated.code, 200);
    assert_eq!(get(&client, "/api/v1/namespaces/nowhere", &[]).await.code, 404);

    let account = json!({"metadata": {"name": "default"}});
    done(&client, Method::POST, "/api/v1/namespaces/fresh/serviceaccounts", account.clone()).await;

    // Tolerations: the cluster's for all, those of a namespace instead, and no others than it allows.
    let pods = |ns: &str| format!("/api/v1/namespaces/{ns}/pods");
    let keys = |pod: &Value| -> Vec<String> {
        let all = pod["spec"]["tolerations"].as_array().into_iter().flatten();
        all.map(|t| t["key"].as_str().unwrap_or("").to_owned()).filter(|k| !k.ends_with("ready") && !k.ends_with("unreachable")).collect()
    };
    let a = done(&client, Method::POST, &pods("fresh"), pod("plain", "good", json!({}))).await;
    assert_eq!(keys(&a), ["cluster"]);
    let annotations = json!({
        "scheduler.alpha.kubernetes.io/defaultTolerations": "[{\"key\": \"own\", \"operator\": \"Exists\"}]",
        "scheduler.alpha.kubernetes.io/tolerationsWhitelist":
            "[{\"key\": \"own\", \"operator\": \"Exists\"}, {\"operator\": \"Exists\", \"effect\": \"NoExecute\", \"tolerationSeconds\": 300}, \
              {\"key\": \"node.kubernetes.io/memory-pressure\", \"operator\": \"Exists\"}]"});
    done(&client, Method::POST, "/api/v1/namespaces", json!({"metadata": {"name": "strict", "annotations": annotations}})).await;
    done(&client, Method::POST, "/api/v1/namespaces/strict/serviceaccounts", account).await;
    let requests = json!({"resources": {"requests": {"cpu": "1"}}});
    let a = done(&client, Method::POST, &pods("strict"), pod("burstable", "good", requests)).await;
    assert_eq!(keys(&a), ["own", "node.kubernetes.io/memory-pressure"]);
    let tolerant = pod("tolerant", "good", json!({"tolerations": [{"key": "other", "operator": "Exists"}]}));
    let refused = send(&client, Method::POST, &pods("strict"), &[], &tolerant).await;
    let why = "pod tolerations (possibly merged with namespace default tolerations) conflict with its namespace whitelist";
    assert_eq!((refused.code, refused.json()["message"].as_str()), (500, Some(why)));

    // Images: refused with the webhook's reason, and a word that is remembered is not asked for again.
    let asked = images.asked();
    assert_eq!(asked.len(), 2, "once in each namespace: {asked:?}");
    assert_eq!((&asked[0]["kind"], &asked[0]["spec"]["namespace"]), (&json!("ImageReview"), &json!("fresh")));
    done(&client, Method::POST, &pods("fresh"), pod("again", "good", json!({}))).await;
    assert!(images.asked().is_empty(), "the answer is remembered");
    for (image, why) in [
        ("bad", "image policy webhook backend denied one or more images: not this one"),
        ("odd", "one or more images rejected by webhook backend"),
    ] {
        for _ in 0..2 {
            let refused = send(&client, Method::POST, &pods("fresh"), &[], &pod("p", image, json!({}))).await;
            assert_eq!((refused.code, refused.json()["message"].clone()), (403, json!(format!("pods \"p\" is forbidden: {why}"))));
        }
    }
    assert_eq!(images.asked().len(), 4, "a refusal is not remembered here");

    // Events: as many as the burst, in each namespace by itself.
    let event = |ns: &str, n: usize| {
        json!({"metadata": {"name": format!("e{n}")}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": ns}, "reason": "R",
            "type": "Normal", "source": {"component": "c"}})
    };
    let hasty = hasty(&cluster).await;
    let mut codes = Vec::new();
    // A slow machine is given a token a second.
    while codes.len() < 200 && codes.last() != Some(&429) {
        let a = send(&hasty, Method::POST, "/api/v1/namespaces/fresh/events", &[], &event("fresh", codes.len())).await;
        if a.code == 429 {
            assert_eq!(a.json()["message"], "Too many requests: limit reached on type Namespace for key fresh");
        }
        codes.push(a.code);
    }
    assert_eq!((&codes[..3], codes.last()), (&[201, 201, 201][..], Some(&429)), "{codes:?}");
    done(&client, Method::POST, "/api/v1/namespaces/strict/events", event("strict", 0)).await;
}
