//! Signs the certificates by which node daemons know each other (signer `vireo.dev/host`).
//!
//! A request is granted only to a host's own ServiceAccount, only under that host's name, and only for talking to
//! peers. Everything in the certificate but the key is ours; what the request asks for beyond that is ignored.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{certificates::v1::CertificateSigningRequest, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey, SanType,
};
use serde_json::json;
use vireo_crds::meta::{CONTROLLER_MANAGER, HOST_SIGNER, HOSTS_NAMESPACE, SYSTEM_NAMESPACE};

use crate::error::Error;

/// Secret that holds the authority's key.
pub const CA_SECRET: &str = "vireo-host-ca";
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of hosts may be behind ours.
const BACKDATED: Duration = Duration::from_secs(300);
const USAGES: [&str; 4] = ["digital signature", "key encipherment", "client auth", "server auth"];

/// What is to be done with a request.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing: it is not ours, or done.
    Nothing,
    /// Refuse it for this reason.
    Deny(String),
    /// Certify this key for this host.
    Sign {
        /// The host.
        host: String,
        /// Its key.
        key: Box<PublicKey>,
        /// For how long.
        lifetime: Duration,
    },
}

/// Judges a request. Pure.
pub fn judge(request: &CertificateSigningRequest) -> Verdict {
    let spec = &request.spec;
    let status = request.status.as_ref();
    let denied = status
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Denied" || c.type_ == "Failed"));
    if spec.signer_name != HOST_SIGNER || denied || status.is_some_and(|s| s.certificate.is_some()) {
        return Verdict::Nothing;
    }
    let user = spec.username.as_deref().unwrap_or_default();
    let Some(host) = user.strip_prefix(&format!("system:serviceaccount:{HOSTS_NAMESPACE}:host-")) else {
        return Verdict::Deny(format!("{user} is not a host's ServiceAccount in {HOSTS_NAMESPACE}"));
    };
    let usages = spec.usages.as_deref().unwrap_or_default();
    if let Some(usage) = usages.iter().find(|usage| !USAGES.contains(&usage.as_str())) {
        return Verdict::Deny(format!("key usage {usage:?} is not for talking to peers; leave it out"));
    }
    let parsed = std::str::from_utf8(&spec.request.0)
        .map_err(|_| "it is not PEM".to_owned())
        .and_then(|pem| CertificateSigningRequestParams::from_pem(pem).map_err(|e| e.to_string()));
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(cause) => return Verdict::Deny(format!("the request cannot be read: {cause}")),
    };
    let name = common_name(&parsed.params.distinguished_name);
    if name != Some(host) {
        return Verdict::Deny(format!(
            "host {host} may only ask for common name {host:?}, not {:?}",
            name.unwrap_or("")
        ));
    }
    let asked = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    Verdict::Sign {
        host: host.to_owned(),
        key: Box::new(parsed.public_key),
        lifetime: asked.unwrap_or(LIFETIME).min(LIFETIME),
    }
}

fn common_name(name: &DistinguishedName) -> Option<&str> {
    match name.get(&DnType::CommonName)? {
        DnValue::Utf8String(text) => Some(text),
        DnValue::PrintableString(text) => Some(text.as_str()),
        DnValue::Ia5String(text) => Some(text.as_str()),
        _ => None,
    }
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// Makes a new one, as (certificate, key), both PEM.
    fn make(now: jiff::Timestamp) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = params("Vireo host authority", now, CA_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn read(certificate: &str, key: &str) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { issuer, certificate: certificate.to_owned() })
    }

    /// The authority of this installation, made at the first call ever.
    pub async fn ensure(client: Client) -> Result<Self, Error> {
        let api: Api<Secret> = Api::namespaced(client, SYSTEM_NAMESPACE);
        let what = |verb: &str| format!("{verb} Secret {SYSTEM_NAMESPACE}/{CA_SECRET}");
        let broken =
            |source| Error::Certificate { subject: "the host authority".into(), source: Box::new(source) };
        let secret = match api.get_opt(CA_SECRET).await.map_err(Error::api(what("get")))? {
            Some(secret) => secret,
            None => {
                let (certificate, key) = Self::make(jiff::Timestamp::now()).map_err(broken)?;
                let secret = Secret {
                    metadata: ObjectMeta { name: Some(CA_SECRET.into()), ..ObjectMeta::default() },
                    type_: Some("kubernetes.io/tls".into()),
                    data: Some(BTreeMap::from([
                        ("tls.crt".to_owned(), ByteString(certificate.into_bytes())),
                        ("tls.key".to_owned(), ByteString(key.into_bytes())),
                    ])),
                    ..Secret::default()
                };
                // A conflict means that another replica made it: the retry finds it.
                api.create(&PostParams::default(), &secret).await.map_err(Error::api(what("create")))?
            }
        };
        let part = |name: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(name))
                .and_then(|bytes| std::str::from_utf8(&bytes.0).ok())
                .ok_or_else(|| Error::Config(format!("Secret {SYSTEM_NAMESPACE}/{CA_SECRET} has no readable {name}; restore it, or delete it for a new authority")))
        };
        Self::read(part("tls.crt")?, part("tls.key")?).map_err(broken)
    }

    /// A certificate for the key of a host, followed by the authority's own.
    fn sign(
        &self,
        host: &str,
        key: &PublicKey,
        lifetime: Duration,
        now: jiff::Timestamp,
    ) -> Result<String, rcgen::Error> {
        let mut params = params(host, now, lifetime);
        params.subject_alt_names = vec![SanType::DnsName(host.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(format!("{}{}", params.signed_by(key, &self.issuer)?.pem(), self.certificate))
    }
}

fn params(common_name: &str, now: jiff::Timestamp, lifetime: Duration) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let start = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds).saturating_sub(BACKDATED);
    let mut params = CertificateParams::default();
    params.not_before = start;
    params.not_after = start + BACKDATED + lifetime;
    params.distinguished_name = name;
    params
}

/// Does what [`judge`] says: approves and signs, or denies.
pub async fn act(client: &Client, request: &CertificateSigningRequest) -> Result<(), Error> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = request.name_any();
    let what = |verb: &str| format!("{verb} CertificateSigningRequest {name}");
    let now = jiff::Timestamp::now();
    let condition = |type_: &str, message: &str| {
        json!({
            "metadata": {"resourceVersion": request.resource_version(), "uid": request.uid()},
            "status": {"conditions": [{
                "type": type_, "status": "True", "reason": "VireoHost", "message": message,
                "lastUpdateTime": now, "lastTransitionTime": now,
            }]},
        })
    };
    let patching = PatchParams { field_manager: Some(CONTROLLER_MANAGER.into()), ..PatchParams::default() };
    match judge(request) {
        Verdict::Nothing => Ok(()),
        Verdict::Deny(reason) => {
            let patch = Patch::Merge(condition("Denied", &reason));
            api.patch_approval(&name, &patching, &patch).await.map_err(Error::api(what("deny")))?;
            tracing::warn!(request = name, reason, "a host certificate is denied");
            Ok(())
        }
        Verdict::Sign { host, key, lifetime } => {
            let authority = Authority::ensure(client.clone()).await?;
            let certificate = authority
                .sign(&host, &key, lifetime, now)
                .map_err(|e| Error::Certificate { subject: format!("host {host}"), source: Box::new(e) })?;
            let approved = request
                .status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Approved"));
            let mut version = request.resource_version();
            if !approved {
                let patch = Patch::Merge(condition(
                    "Approved",
                    "the host's own ServiceAccount asks under the host's name",
                ));
                let answer = api
                    .patch_approval(&name, &patching, &patch)
                    .await
                    .map_err(Error::api(what("approve")))?;
                version = answer.resource_version();
            }
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": version, "uid": request.uid()},
                "status": {"certificate": ByteString(certificate.into_bytes())},
            }));
            api.patch_status(&name, &patching, &patch).await.map_err(Error::api(what("sign")))?;
            tracing::info!(request = name, host, "a host certificate is signed");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

    use super::*;

    fn request(user: &str, common_name: &str, usages: &[&str]) -> CertificateSigningRequest {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: HOST_SIGNER.into(),
                username: Some(user.into()),
                usages: Some(usages.iter().map(|u| (*u).to_owned()).collect()),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        }
    }

    fn denied(request: &CertificateSigningRequest) -> String {
        match judge(request) {
            Verdict::Deny(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    const HOST_1: &str = "system:serviceaccount:vireo-hosts:host-host1";

    #[test]
    fn a_host_gets_a_certificate_for_its_own_name_only() {
        assert!(
            matches!(judge(&request(HOST_1, "host1", &["client auth"])), Verdict::Sign { host, .. } if host == "host1")
        );
        assert!(denied(&request(HOST_1, "host2", &[])).contains("host2"));
        assert!(
            denied(&request("system:serviceaccount:default:host-host1", "host1", &[])).contains("not a host")
        );
        assert!(denied(&request("system:admin", "host1", &[])).contains("not a host"));
        assert!(denied(&request(HOST_1, "host1", &["cert sign"])).contains("cert sign"));
    }

    #[test]
    fn a_broken_request_is_denied_in_words() {
        let mut broken = request(HOST_1, "host1", &[]);
        broken.spec.request = ByteString(b"nonsense".to_vec());
        assert!(denied(&broken).contains("cannot be read"));
    }

    #[test]
    fn what_is_done_is_left_alone_and_other_signers_too() {
        let mut done = request(HOST_1, "host1", &[]);
        done.status.get_or_insert_default().certificate = Some(ByteString(vec![1]));
        assert!(matches!(judge(&done), Verdict::Nothing));
        let mut other = request(HOST_1, "host1", &[]);
        other.spec.signer_name = "kubernetes.io/kube-apiserver-client".into();
        assert!(matches!(judge(&other), Verdict::Nothing));
    }

    #[test]
    fn the_authority_survives_being_stored_and_signs_for_a_week_at_most() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let (certificate, key) = Authority::make(now).unwrap();
        let authority = Authority::read(&certificate, &key).unwrap();
        let mut asks_for_a_year = request(HOST_1, "host1", &[]);
        asks_for_a_year.spec.expiration_seconds = Some(31_536_000);
        let Verdict::Sign { host, key, lifetime } = judge(&asks_for_a_year) else { panic!() };
        assert_eq!(lifetime, LIFETIME);
        let chain = authority.sign(&host, &key, lifetime, now).unwrap();
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    }
}
