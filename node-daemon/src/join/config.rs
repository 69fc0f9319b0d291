//! What a host keeps in its etc directory: configuration, key, token, certificates.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::JoinError;

/// Configuration.
pub const FILE: &str = "node.yaml";
/// Private key.
pub const KEY: &str = "key.pem";
/// Certificates of the API server's authority.
pub const CA: &str = "ca.crt";
/// Token of the host's ServiceAccount.
pub const TOKEN: &str = "token";
/// Certificate by which other hosts know this one.
pub const PEER_CERTIFICATE: &str = "peer.crt";
/// Certificate of the authority that signs peers.
pub const PEER_CA: &str = "peer-ca.crt";

/// Configuration of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the Host.
    pub host: String,
    /// Address of the API server.
    pub server: String,
    /// Directory that survives a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Directory that a boot empties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    /// libvirt URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt_uri: Option<String>,
}

impl NodeConfig {
    /// Reads the configuration.
    pub fn load(etc_dir: &Path) -> Result<Self, JoinError> {
        let path = etc_dir.join(FILE);
        let text = fs::read_to_string(&path).map_err(JoinError::file(&path))?;
        serde_saphyr::from_str(&text).map_err(|e| JoinError::Content { path, message: e.to_string() })
    }

    /// Writes the configuration.
    pub fn store(&self, etc_dir: &Path) -> Result<(), JoinError> {
        let path = etc_dir.join(FILE);
        let text = serde_saphyr::to_string(self)
            .map_err(|e| JoinError::Content { path: path.clone(), message: e.to_string() })?;
        write(&path, text.as_bytes(), 0o644)
    }

    /// How to reach the API server with the token in the etc directory, which is read anew as it is renewed.
    pub fn client_config(&self, etc_dir: &Path) -> Result<kube::Config, JoinError> {
        let mut config = self.server_config(etc_dir)?;
        config.auth_info.token_file = Some(etc_dir.join(TOKEN).display().to_string());
        Ok(config)
    }

    /// How to reach the API server with this token.
    pub fn config_with_token(&self, etc_dir: &Path, token: &str) -> Result<kube::Config, JoinError> {
        let mut config = self.server_config(etc_dir)?;
        config.auth_info.token = Some(token.to_owned().into());
        Ok(config)
    }

    fn server_config(&self, etc_dir: &Path) -> Result<kube::Config, JoinError> {
        let bad = |message: String| JoinError::Content { path: etc_dir.join(FILE), message };
        let url = self.server.parse().map_err(|e| {
            bad(format!(
                "server: \"{}\" is not an address such as https://api.example:6443: {e}",
                self.server
            ))
        })?;
        let mut config = kube::Config::new(url);
        if config.cluster_url.scheme_str() != Some("https") {
            return Err(bad(format!("server: \"{}\" must begin with https://", self.server)));
        }
        config.root_cert = Some(certificates(&etc_dir.join(CA))?);
        Ok(config)
    }
}

/// The certificates of a PEM file.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, JoinError> {
    let pem = fs::read(path).map_err(JoinError::file(path))?;
    let bad = |message: String| JoinError::Content { path: path.into(), message };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&pem).map(|der| der.map(|der| der.to_vec())).collect();
    match found {
        Ok(found) if found.is_empty() => Err(bad("holds no certificate; it must be PEM".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// SHA-256 of the host's public key.
pub fn public_key_sha256(etc_dir: &Path) -> Result<String, JoinError> {
    load_key(etc_dir).map(|key| fingerprint(&key))
}

/// Reads the host's key.
pub fn load_key(etc_dir: &Path) -> Result<KeyPair, JoinError> {
    let path = etc_dir.join(KEY);
    let pem = fs::read_to_string(&path).map_err(JoinError::file(&path))?;
    KeyPair::from_pem(&pem).map_err(|e| JoinError::Content { path, message: e.to_string() })
}

/// Reads the host's key, or makes one (ECDSA P-256) if there is none.
pub fn ensure_key(etc_dir: &Path) -> Result<KeyPair, JoinError> {
    let path = etc_dir.join(KEY);
    if path.exists() {
        return load_key(etc_dir);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| JoinError::Key { what: "a key", message: e.to_string() })?;
    write(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// SHA-256 of a public key in its standard form (SubjectPublicKeyInfo).
pub fn fingerprint(key: &KeyPair) -> String {
    Sha256::digest(key.subject_public_key_info()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the etc directory: passwords lie in it, so it is root's alone.
pub fn make_directory(etc_dir: &Path) -> Result<(), JoinError> {
    fs::create_dir_all(etc_dir)
        .and_then(|()| fs::set_permissions(etc_dir, fs::Permissions::from_mode(0o700)))
        .map_err(JoinError::file(etc_dir))
}

/// Writes a file whole, so that a reader sees the old or the new content.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), JoinError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let partial = path.with_file_name(name);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(JoinError::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        NodeConfig {
            host: "host1".into(),
            server: "https://127.0.0.1:6443".into(),
            state_dir: None,
            run_dir: Some("/run/x".into()),
            libvirt_uri: None,
        }
    }

    fn certificate() -> String {
        let key = KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["ca".into()]).unwrap().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn configuration_round_trips_and_unknown_fields_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        config().store(dir.path()).unwrap();
        assert_eq!(NodeConfig::load(dir.path()).unwrap(), config());
        fs::write(dir.path().join(FILE), "host: a\nserver: https://x\nsever: y\n").unwrap();
        assert!(NodeConfig::load(dir.path()).unwrap_err().to_string().contains("sever"));
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        make_directory(dir.path()).unwrap();
        let made = fingerprint(&ensure_key(dir.path()).unwrap());
        assert_eq!(fingerprint(&ensure_key(dir.path()).unwrap()), made);
        assert_eq!(public_key_sha256(dir.path()).unwrap(), made);
        assert_eq!(made.len(), 64);
        assert_eq!(fs::metadata(dir.path().join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_api_server_is_reached_over_tls_only() {
        let dir = tempfile::tempdir().unwrap();
        assert!(config().client_config(dir.path()).is_err());
        fs::write(dir.path().join(CA), certificate()).unwrap();
        let made = config().client_config(dir.path()).unwrap();
        assert_eq!((made.root_cert.unwrap().len(), made.auth_info.token_file.is_some()), (1, true));
        let plain = NodeConfig { server: "http://127.0.0.1".into(), ..config() };
        assert!(plain.client_config(dir.path()).unwrap_err().to_string().contains("https://"));
        fs::write(dir.path().join(CA), "nonsense").unwrap();
        assert!(config().client_config(dir.path()).unwrap_err().to_string().contains("no certificate"));
    }
}
