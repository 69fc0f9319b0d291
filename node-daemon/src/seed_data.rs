//! Reads what goes into a VM's seed image: from its spec, and from Secrets only its host may read. What was read stays
//! in memory, is never logged, and is read again only for a new grant or generation.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt};
use node_plan::intent::{Seed, Wait, Wanted};
use sha2::{Digest, Sha256};
use vireo_crds::{
    reasons,
    v1alpha1::{SecretRef, VirtualMachine},
};

use crate::{host::SeedContent, report::with_timeout};

const USER_DATA: &str = "userData";
const NETWORK_DATA: &str = "networkData";

/// First-boot data, as far as it could be read.
#[derive(Debug, Clone, PartialEq)]
pub enum SeedData {
    /// The VM has none.
    None,
    /// This.
    Read(SeedContent),
    /// What a guest was built from before: only its digest is known, and nothing changed since.
    Kept(Seed),
    /// A Secret is missing or may not be read yet.
    Missing(Wait),
}

/// Reads and remembers the first-boot data of one VM.
pub struct SeedReader {
    client: Client,
    /// Generation and grant for which it was read.
    known: Option<((i64, String), SeedContent)>,
}

impl SeedReader {
    /// Nothing is known yet.
    pub fn new(client: Client) -> Self {
        Self { client, known: None }
    }

    /// First-boot data of a VM. `kept` is what the ledger keeps of what runs.
    pub async fn read(&mut self, vm: &VirtualMachine, kept: Option<&Wanted>) -> SeedData {
        let Some(spec) = &vm.spec.cloud_init else { return SeedData::None };
        if let Some(content) = self.content(vm) {
            return SeedData::Read(content);
        }
        let secrets = spec.user_data_secret.is_some() || spec.network_data_secret.is_some();
        let generation = vm.metadata.generation.unwrap_or_default();
        if secrets
            && let Some(kept) = kept.filter(|kept| kept.generation == generation)
            && let Some(seed) = &kept.seed
        {
            return SeedData::Kept(seed.clone());
        }
        let namespace = vm.namespace().unwrap_or_default();
        let user_data = match self
            .part(&namespace, spec.user_data.as_ref(), spec.user_data_secret.as_ref(), USER_DATA)
            .await
        {
            Ok(part) => part,
            Err(wait) => return SeedData::Missing(wait),
        };
        let network_data = match self
            .part(&namespace, spec.network_data.as_ref(), spec.network_data_secret.as_ref(), NETWORK_DATA)
            .await
        {
            Ok(part) => part,
            Err(wait) => return SeedData::Missing(wait),
        };
        let content = SeedContent {
            instance_id: vm.uid().unwrap_or_default(),
            hostname: vm.spec.hostname.clone().unwrap_or_else(|| vm.name_any()),
            user_data,
            network_data,
        };
        if let Some(version) = version(vm) {
            self.known = Some((version, content.clone()));
        }
        SeedData::Read(content)
    }

    /// What was read for the present generation and grant.
    pub fn content(&self, vm: &VirtualMachine) -> Option<SeedContent> {
        let (known, content) = self.known.as_ref()?;
        (Some(known) == version(vm).as_ref()).then(|| content.clone())
    }

    async fn part(
        &self,
        namespace: &str,
        inline: Option<&String>,
        secret: Option<&SecretRef>,
        key: &str,
    ) -> Result<Option<String>, Wait> {
        let Some(secret) = secret else { return Ok(inline.cloned()) };
        let wait = |what: &str| {
            Wait::new(reasons::SECRET_NOT_READABLE, format!("Secret {namespace}/{}: {what}", secret.name))
        };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match with_timeout(api.get(&secret.name)).await {
            Ok(found) => {
                let data = found
                    .data
                    .and_then(|mut data| data.remove(key))
                    .ok_or_else(|| wait(&format!("it has no key {key}; add it")))?;
                String::from_utf8(data.0)
                    .map(Some)
                    .map_err(|_| wait(&format!("the value of {key} is not text")))
            }
            Err(Some(kube::Error::Api(status))) if status.code == 404 => {
                Err(wait("it does not exist; create it"))
            }
            Err(Some(kube::Error::Api(status))) if status.code == 403 => {
                Err(wait("this host may not read it yet; the controller grants that when it places the VM"))
            }
            Err(_) => Err(wait("the API server does not answer")),
        }
    }
}

fn version(vm: &VirtualMachine) -> Option<(i64, String)> {
    let grant = vm.status.as_ref()?.placement.as_ref()?.id.clone();
    Some((vm.metadata.generation.unwrap_or_default(), grant))
}

/// Names the content of a seed image; says nothing about it.
pub fn digest(content: &SeedContent) -> String {
    let mut hash = Sha256::new();
    let parts = [
        Some(&content.instance_id),
        Some(&content.hostname),
        content.user_data.as_ref(),
        content.network_data.as_ref(),
    ];
    for part in parts {
        let bytes = part.map(String::as_bytes).unwrap_or_default();
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update([u8::from(part.is_some())]);
        hash.update(bytes);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
