//! Makes the credentials of hosts: what one host's daemon may do beyond what all daemons may, and which Secrets of
//! which VM it may read. Reads before it writes, so that nothing is written at rest.

use controller_plan::world::SecretAccess;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::ServiceAccount,
        rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use vireo_crds::meta::{
    CONTROLLER_MANAGER, GROUP, HOST_LABEL, HOSTS_NAMESPACE, VERSION, VM_LABEL, host_service_account,
};

use crate::{
    error::Error,
    session::{Session, lock},
};

const RBAC: &str = "rbac.authorization.k8s.io";

/// The object on behalf of which access is given: its end is the end of the access.
#[derive(Debug, Clone)]
pub struct Owner<'a> {
    /// `Host` or `VirtualMachine`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

impl Owner<'_> {
    fn metadata(&self, name: String, namespace: &str, label: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            labels: Some([(label.to_owned(), self.name.to_owned())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: format!("{GROUP}/{VERSION}"),
                kind: self.kind.to_owned(),
                name: self.name.to_owned(),
                uid: self.uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        }
    }
}

/// Lets a host's daemon be itself: its own tokens and its own Lease, nothing else.
pub async fn ensure_host(client: &Client, owner: &Owner<'_>) -> Result<(), Error> {
    let account = host_service_account(owner.name);
    let metadata = |name: &str| owner.metadata(name.to_owned(), HOSTS_NAMESPACE, HOST_LABEL);
    let service_account = ServiceAccount {
        metadata: metadata(&account),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    // Made here, so that no daemon needs the right to create Leases, which cannot be limited to a name.
    let lease = Lease { metadata: metadata(owner.name), spec: None };
    let role = Role {
        metadata: metadata(&account),
        rules: Some(vec![
            rule("", "serviceaccounts/token", &["create"], &account),
            rule("", "serviceaccounts", &["get"], &account),
            rule("coordination.k8s.io", "leases", &["get", "update", "patch"], owner.name),
        ]),
    };
    let binding = bind(metadata(&account), &account, &account);
    ensure(client, service_account, |have, want| {
        have.automount_service_account_token == want.automount_service_account_token
    })
    .await?;
    ensure(client, lease, |_, _| true).await?;
    ensure(client, role, |have, want| have.rules == want.rules).await?;
    ensure(client, binding, same_binding).await
}

/// Lets one host read exactly these Secrets of a VM.
pub async fn ensure_secrets(
    client: &Client,
    owner: &Owner<'_>,
    namespace: &str,
    host: &str,
    secrets: &[String],
) -> Result<(), Error> {
    let name = secret_access_name(owner.uid);
    let metadata = || owner.metadata(name.clone(), namespace, VM_LABEL);
    let role = Role {
        metadata: metadata(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".into()]),
            verbs: vec!["get".into()],
            resource_names: Some(secrets.to_vec()),
            ..PolicyRule::default()
        }]),
    };
    let binding = bind(metadata(), &name, &host_service_account(host));
    ensure(client, role, |have, want| have.rules == want.rules).await?;
    ensure(client, binding, same_binding).await
}

/// Reads who may read the Secrets of which VM, so that the planner knows what is left from before.
pub async fn load(session: &Session) -> Result<(), Error> {
    let labelled = ListParams::default().labels(VM_LABEL);
    let roles = Api::<Role>::all(session.client()).list(&labelled).await.map_err(Error::api("list Roles"))?;
    let bindings = Api::<RoleBinding>::all(session.client())
        .list(&labelled)
        .await
        .map_err(Error::api("list RoleBindings"))?;
    for role in roles {
        let name = role.name_any();
        let Some(uid) = name.strip_prefix("vireo-vm-") else { continue };
        let binding =
            bindings.iter().find(|b| b.metadata.namespace == role.metadata.namespace && b.name_any() == name);
        let subject = binding.and_then(|b| b.subjects.as_ref()?.first());
        // Half of an access is one that has to be made, or removed, again.
        let host = subject.and_then(|s| s.name.strip_prefix("host-")).unwrap_or_default().to_owned();
        let mut secrets: Vec<String> =
            role.rules.iter().flatten().filter_map(|r| r.resource_names.clone()).flatten().collect();
        secrets.sort();
        lock(&session.world).set_secret_access(uid, Some(SecretAccess { host, secrets }));
    }
    Ok(())
}

/// Takes a VM's Secrets away from every host.
pub async fn remove_secrets(client: &Client, vm_uid: &str, namespace: &str) -> Result<(), Error> {
    let name = secret_access_name(vm_uid);
    // The binding first: a role nobody is bound to gives nothing.
    remove::<RoleBinding>(client, namespace, &name).await?;
    remove::<Role>(client, namespace, &name).await
}

/// Name of Role and RoleBinding of a VM's Secrets.
pub fn secret_access_name(vm_uid: &str) -> String {
    format!("vireo-vm-{vm_uid}")
}

fn rule(group: &str, resource: &str, verbs: &[&str], name: &str) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
        resource_names: Some(vec![name.to_owned()]),
        ..PolicyRule::default()
    }
}

fn bind(metadata: ObjectMeta, role: &str, account: &str) -> RoleBinding {
    RoleBinding {
        metadata,
        role_ref: RoleRef { api_group: RBAC.into(), kind: "Role".into(), name: role.to_owned() },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: account.to_owned(),
            namespace: Some(HOSTS_NAMESPACE.into()),
            api_group: None,
        }]),
    }
}

fn same_binding(have: &RoleBinding, want: &RoleBinding) -> bool {
    let names = |binding: &RoleBinding| -> Vec<(String, Option<String>)> {
        binding.subjects.iter().flatten().map(|s| (s.name.clone(), s.namespace.clone())).collect()
    };
    have.role_ref == want.role_ref && names(have) == names(want)
}

async fn ensure<K>(client: &Client, want: K, same: impl Fn(&K, &K) -> bool) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let namespace = want.meta().namespace.clone().unwrap_or_default();
    let name = want.meta().name.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let what = |verb: &str| format!("{verb} {} {namespace}/{name}", K::kind(&()));
    let have = api.get_opt(&name).await.map_err(Error::api(what("get")))?;
    let owner = |object: &K| {
        object.meta().owner_references.iter().flatten().map(|o| o.uid.clone()).collect::<Vec<_>>()
    };
    if let Some(have) = &have
        && owner(have) == owner(&want)
        && same(have, &want)
    {
        return Ok(());
    }
    let applying = PatchParams::apply(CONTROLLER_MANAGER).force();
    api.patch(&name, &applying, &Patch::Apply(&want)).await.map_err(Error::api(what("apply")))?;
    Ok(())
}

async fn remove<K>(client: &Client, namespace: &str, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(Error::api(format!("delete {} {namespace}/{name}", K::kind(&())))(error)),
    }
}
