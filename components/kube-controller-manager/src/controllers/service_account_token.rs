//! Tokens that stand in Secrets of type `kubernetes.io/service-account-token`, which people make by hand for what cannot ask for tokens.
//!
//! Such a Secret names its account in an annotation; it gets the token, the cluster's CA and its namespace, and goes when its account goes.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use k8s_client::{
    Action, Change, Client, DeleteOptions, Error, Informer, ObjectKey, Request, WorkQueue,
    resources::{SECRETS, SERVICE_ACCOUNTS},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};

use crate::api::{Secret, ServiceAccount};
use crate::context::Context;
use crate::ownership::ignore_missing;
use crate::reconcile::{Reconcile, follow, work};

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// Signs tokens: ECDSA P-256 or RSA.
enum Signer {
    Es256(EcdsaKeyPair, String),
    Rs256(RsaKeyPair, String),
}

impl Signer {
    fn from_pem(pem: &[u8]) -> Option<Self> {
        let ec = |der: &[u8]| EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der).ok();
        let kid = |spki: &[u8]| URL_SAFE_NO_PAD.encode(digest(&SHA256, spki));
        let elliptic = |key: EcdsaKeyPair| {
            let id = kid(key.public_key().as_der().ok()?.as_ref());
            Some(Self::Es256(key, id))
        };
        let rsa = |key: RsaKeyPair| {
            let id = kid(key.public_key().as_der().ok()?.as_ref());
            Some(Self::Rs256(key, id))
        };
        match PrivateKeyDer::from_pem_slice(pem).ok()? {
            PrivateKeyDer::Sec1(der) => elliptic(ec(der.secret_sec1_der())?),
            PrivateKeyDer::Pkcs1(der) => rsa(RsaKeyPair::from_der(der.secret_pkcs1_der()).ok()?),
            PrivateKeyDer::Pkcs8(der) => match RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()) {
                Ok(key) => rsa(key),
                Err(_) => elliptic(ec(der.secret_pkcs8_der())?),
            },
            _ => None,
        }
    }

    fn sign(&self, claims: &Value) -> Option<String> {
        let (name, kid) = match self {
            Self::Es256(_, kid) => ("ES256", kid),
            Self::Rs256(_, kid) => ("RS256", kid),
        };
        let head = json!({"alg": name, "kid": kid});
        let mut token = format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Es256(key, _) => key.sign(&random, token.as_bytes()).ok()?.as_ref().to_vec(),
            Self::Rs256(key, _) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, token.as_bytes(), &mut out).ok()?;
                out
            }
        };
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Some(token)
    }
}

/// What to do about one Secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its account is gone.
    Delete,
    /// These entries and the account's uid are missing or wrong; an empty token is to be made.
    Fill {
        token: bool,
    },
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, ca: Option<&[u8]>) -> Plan {
    let annotation = |name: &str| secret.metadata.annotations.get(name).map_or("", String::as_str);
    if secret.kind != TYPE || secret.metadata.is_deleting() || annotation(NAME).is_empty() {
        return Plan::Nothing;
    }
    let uid = annotation(UID);
    let Some(account) = account.filter(|account| uid.is_empty() || account.metadata.uid == uid) else { return Plan::Delete };
    let has = |name: &str| secret.data.get(name).map_or("", String::as_str);
    let token = has("token").is_empty();
    let right = uid == account.metadata.uid
        && !token
        && has("namespace") == STANDARD.encode(&secret.metadata.namespace)
        && ca.is_none_or(|ca| has("ca.crt") == STANDARD.encode(ca));
    if right { Plan::Nothing } else { Plan::Fill { token } }
}

fn claims(secret: &Secret, account: &ServiceAccount) -> Value {
    let (namespace, name) = (&account.metadata.namespace, &account.metadata.name);
    json!({
        "iss": "kubernetes/serviceaccount",
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "kubernetes.io/serviceaccount/namespace": namespace,
        "kubernetes.io/serviceaccount/secret.name": secret.metadata.name,
        "kubernetes.io/serviceaccount/service-account.name": name,
        "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
    })
}

#[derive(Clone)]
struct Controller {
    client: Client,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    signer: Arc<Signer>,
    ca: Option<Arc<Vec<u8>>>,
}

/// Runs until the context stops; does nothing without `--service-account-private-key-file`.
pub async fn run(context: Context) {
    let Some(path) = context.options.service_account_private_key_file.clone() else {
        tracing::info!("no --service-account-private-key-file: Secrets get no tokens");
        return context.stop.cancelled().await;
    };
    let signer = match std::fs::read(&path) {
        Ok(pem) => Signer::from_pem(&pem),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the key that signs the tokens of Secrets cannot be read");
            return context.stop.cancelled().await;
        }
    };
    let Some(signer) = signer else {
        tracing::error!(path = %path.display(), "Secrets get no tokens: the file holds no RSA or ECDSA P-256 key");
        return context.stop.cancelled().await;
    };
    let ca = context.options.root_ca_file.as_ref().and_then(|path| {
        let read = std::fs::read(path);
        read.inspect_err(|error| tracing::error!(path = %path.display(), %error, "the CA for the Secrets of tokens cannot be read")).ok()
    });
    let controller = Controller {
        // As upstream's: no account of its own could be given a token before it runs.
        client: context.root.clone(),
        secrets: context.informers.narrow::<Secret>("", &format!("type={TYPE}")),
        accounts: context.informers.service_accounts(),
        signer: Arc::new(signer),
        ca: ca.map(Arc::new),
    };
    let queue = WorkQueue::new("serviceaccount-token");
    follow(&queue, &controller.secrets);
    let (sink, secrets) = (queue.clone(), controller.secrets.clone());
    controller.accounts.add_handler(move |change: Change<'_, ServiceAccount>| {
        if let Change::Deleted(account) = change {
            let of = |secret: &&Arc<Secret>| secret.metadata.annotations.get(NAME) == Some(&account.metadata.name);
            secrets.list_namespace(&account.metadata.namespace).iter().filter(of).for_each(|secret| sink.add(secret.metadata.key()));
        }
    });
    controller.secrets.wait_synced().await;
    controller.accounts.wait_synced().await;
    work(&context, queue, 2, controller).await;
}

impl Reconcile for Controller {
    async fn sync(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(secret) = self.secrets.get_key(&key) else { return Ok(Action::Done) };
        let Some(name) = secret.metadata.annotations.get(NAME) else { return Ok(Action::Done) };
        let mut account = self.accounts.get(&key.namespace, name);
        if account.is_none() {
            // The cache may lag behind who made both; deleting needs the truth.
            account = match self.client.call::<ServiceAccount>(&Request::get(&SERVICE_ACCOUNTS, &key.namespace, name)).await {
                Ok(found) => Some(Arc::new(found)),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
        }
        let ca = self.ca.as_ref().map(|ca| ca.as_slice());
        match (plan(&secret, account.as_deref(), ca), account) {
            (Plan::Nothing, _) => {}
            (Plan::Delete, _) | (Plan::Fill { .. }, None) => {
                let options = DeleteOptions::uid(&secret.metadata.uid);
                ignore_missing(&self.client, &Request::delete(&SECRETS, &key.namespace, &key.name, &options)).await?;
            }
            (Plan::Fill { token }, Some(account)) => {
                let made = token.then(|| self.signer.sign(&claims(&secret, &account))).flatten();
                let change = |object: &mut Value| {
                    object["metadata"]["annotations"][UID] = json!(account.metadata.uid);
                    let mut entries = vec![("namespace", STANDARD.encode(&key.namespace))];
                    entries.extend(ca.map(|ca| ("ca.crt", STANDARD.encode(ca))));
                    entries.extend(made.as_ref().map(|token| ("token", STANDARD.encode(token))));
                    for (name, value) in entries {
                        object["data"][name] = json!(value);
                    }
                };
                let written = self.client.update(&SECRETS, (&key.namespace, &key.name), &secret.metadata.uid, "", change).await;
                match written {
                    Err(error) if error.is_conflict() => return Ok(Action::Retry),
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_follows_its_account() {
        let secret = |annotations: Value, data: Value| -> Secret {
            serde_json::from_value(
                json!({"metadata": {"name": "s", "namespace": "d", "annotations": annotations}, "type": TYPE, "data": data}),
            )
            .unwrap()
        };
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "d", "uid": "u"}})).unwrap();
        let full = json!({"token": "dA==", "namespace": "ZA==", "ca.crt": "Y2E="});
        for (object, account, want) in [
            (secret(json!({NAME: "a"}), json!({})), Some(&account), Plan::Fill { token: true }),
            (secret(json!({NAME: "a", UID: "u"}), full.clone()), Some(&account), Plan::Nothing),
            (
                secret(json!({NAME: "a", UID: "u"}), json!({"token": "dA==", "namespace": "ZA=="})),
                Some(&account),
                Plan::Fill { token: false },
            ),
            (secret(json!({NAME: "a", UID: "older"}), full.clone()), Some(&account), Plan::Delete),
            (secret(json!({NAME: "a"}), full.clone()), None, Plan::Delete),
            (secret(json!({}), full), None, Plan::Nothing),
        ] {
            assert_eq!(plan(&object, account, Some(b"ca")), want, "{object:?}");
        }
    }

    #[test]
    fn tokens_are_signed_with_the_key_of_the_file() {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = key.to_pkcs8v1().unwrap();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
        let token = Signer::from_pem(pem.as_bytes()).unwrap().sign(&json!({"sub": "x"})).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let public =
            aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, key.public_key().as_ref());
        public.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        assert!(Signer::from_pem(b"no key").is_none());
    }
}
