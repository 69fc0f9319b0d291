//! Asks the API server for what the host proves itself with: a token of its ServiceAccount, a certificate for peers.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
        core::v1::ServiceAccount,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use vireo_crds::meta::{HOST_SIGNER, HOSTS_NAMESPACE, host_service_account};

use super::{JoinError, config};

/// Life of a token.
pub const TOKEN_SECONDS: i64 = 24 * 3600;
/// Life of a peer certificate.
pub const CERTIFICATE_SECONDS: i32 = 7 * 24 * 3600;
/// How long the signer may take.
const SIGNING: Duration = Duration::from_secs(20);
const SIGNING_LOOK: Duration = Duration::from_millis(250);

/// Asks for a new token, keeps it, and says until when it is good.
pub async fn renew_token(client: &Client, host: &str, etc_dir: &Path) -> Result<Timestamp, JoinError> {
    let account = host_service_account(host);
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), HOSTS_NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    };
    let what = format!("cannot get a token of ServiceAccount {HOSTS_NAMESPACE}/{account}");
    let answer = api
        .create_token_request(&account, &PostParams::default(), &request)
        .await
        .map_err(JoinError::api(what))?;
    let status = answer
        .status
        .ok_or(JoinError::Key { what: "a token", message: "the API server sent none".into() })?;
    config::write(&etc_dir.join(config::TOKEN), status.token.as_bytes(), 0o600)?;
    Ok(status.expiration_timestamp.0)
}

/// Asks for a new peer certificate, keeps it, and says until when it is good.
pub async fn renew_certificate(
    client: &Client,
    host: &str,
    key: &KeyPair,
    etc_dir: &Path,
) -> Result<Timestamp, JoinError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = format!("vireo-host-{host}-{}", uuid::Uuid::new_v4().simple());
    let request = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(signing_request(host, key)?.into_bytes()),
            signer_name: HOST_SIGNER.into(),
            expiration_seconds: Some(CERTIFICATE_SECONDS),
            usages: Some(
                ["digital signature", "key encipherment", "client auth", "server auth"]
                    .map(Into::into)
                    .to_vec(),
            ),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    api.create(&PostParams::default(), &request)
        .await
        .map_err(JoinError::api("cannot ask for a peer certificate"))?;
    let asked = Timestamp::now();
    let issued = async {
        loop {
            let found = api
                .get(&name)
                .await
                .map_err(JoinError::api("cannot read the request for a peer certificate"))?;
            let status = found.status.unwrap_or_default();
            let refused = status
                .conditions
                .unwrap_or_default()
                .into_iter()
                .find(|c| matches!(c.type_.as_str(), "Denied" | "Failed"));
            if let Some(refused) = refused {
                return Err(JoinError::Key {
                    what: "a peer certificate",
                    message: refused.message.unwrap_or(refused.type_),
                });
            }
            if let Some(certificate) = status.certificate {
                return Ok(certificate.0);
            }
            tokio::time::sleep(SIGNING_LOOK).await;
        }
    };
    let chain = tokio::time::timeout(SIGNING, issued)
        .await
        .map_err(|_| JoinError::NotSigned(SIGNING.as_secs()))??;
    let chain = String::from_utf8_lossy(&chain).into_owned();
    let (own, authority) = split(&chain)
        .ok_or(JoinError::Key { what: "a peer certificate", message: "the signer sent no PEM".into() })?;
    config::write(&etc_dir.join(config::PEER_CA), authority.as_bytes(), 0o644)?;
    config::write(&etc_dir.join(config::PEER_CERTIFICATE), own.as_bytes(), 0o644)?;
    Ok(asked.checked_add(jiff::SignedDuration::from_secs(CERTIFICATE_SECONDS.into())).unwrap_or(asked))
}

fn signing_request(host: &str, key: &KeyPair) -> Result<String, JoinError> {
    let failed = |e: rcgen::Error| JoinError::Key { what: "a certificate request", message: e.to_string() };
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, host);
    params.distinguished_name = subject;
    params.serialize_request(key).and_then(|request| request.pem()).map_err(failed)
}

/// The host's own certificate, and what signed it.
fn split(chain: &str) -> Option<(&str, &str)> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = chain.find(END)? + END.len();
    let (own, rest) = chain.split_at(end);
    Some((own.trim_start(), rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_split_after_its_first_certificate() {
        let one = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----";
        let chain = format!("{one}\n{one}\n");
        assert_eq!(split(&chain), Some((one, format!("{one}\n").as_str())));
        assert_eq!(split("nonsense"), None);
    }

    #[test]
    fn requests_name_the_host() {
        let key = KeyPair::generate().unwrap();
        let request = signing_request("host1", &key).unwrap();
        assert!(request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    }
}
