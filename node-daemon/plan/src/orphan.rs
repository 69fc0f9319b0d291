//! Sorts the libvirt domains of a host: ours and explained, ours and unexplained, somebody else's. The last are listed
//! and never touched; the second are kept running and listed with a reason.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::OrphanDomain;

use crate::facts::DomainMetadata;

/// A domain as the census finds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// libvirt's name of it.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Our element in its metadata, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<DomainMetadata>,
    /// It has an element of ours that cannot be read.
    #[serde(default)]
    pub unreadable: bool,
}

/// What this host knows of VMs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// Identity of this installation, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation_id: Option<String>,
    /// UUIDs of the domains of VMs whose ledger entry holds an open grant, by VM uid: ours even without metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held: BTreeMap<String, String>,
    /// Why a VM's domain is not explained by the API (`Plan::unexplained`), by VM uid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unexplained: BTreeMap<String, String>,
}

/// The domains of a host, sorted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// uids of VMs whose domain is here: each has a worker that plans for it, also if the API does not name it.
    pub ours: Vec<String>,
    /// Ours, and no object explains them.
    pub orphans: Vec<OrphanDomain>,
    /// Somebody else's.
    pub foreign: Vec<String>,
}

/// Sorts what was found. Order is that of names, so that the same domains give the same report.
pub fn sort(found: &[Found], known: &Known) -> Census {
    let mut census = Census::default();
    let mut found: Vec<_> = found.iter().collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    for domain in found {
        let held = known.held.iter().find(|(_, uuid)| **uuid == domain.uuid).map(|(uid, _)| uid.clone());
        let ours = match &domain.metadata {
            Some(metadata)
                if known.installation_id.as_ref().is_some_and(|ours| *ours != metadata.installation_id) =>
            {
                None
            }
            Some(metadata) => Some(metadata.vm.uid.clone()),
            None => held,
        };
        let Some(uid) = ours else {
            if domain.unreadable {
                let reason = "its Vireo metadata cannot be read; it is left alone".into();
                census.orphans.push(OrphanDomain {
                    name: domain.name.clone(),
                    vm_uid: String::new(),
                    reason,
                });
            } else {
                census.foreign.push(domain.name.clone());
            }
            continue;
        };
        if let Some(reason) = known.unexplained.get(&uid) {
            let reason = reason.chars().take(256).collect();
            census.orphans.push(OrphanDomain { name: domain.name.clone(), vm_uid: uid.clone(), reason });
        }
        census.ours.push(uid);
    }
    census.orphans.truncate(256);
    census.foreign.truncate(256);
    census
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, uuid: &str) -> Found {
        Found { name: name.into(), uuid: uuid.into(), metadata: None, unreadable: false }
    }

    #[test]
    fn a_domain_without_our_mark_is_foreign_unless_the_ledger_holds_it() {
        let known = Known { held: BTreeMap::from([("vm-1".into(), "uuid-1".into())]), ..Known::default() };
        let census = sort(&[found("someone", "uuid-9"), found("default.web", "uuid-1")], &known);
        assert_eq!(census.foreign, ["someone"]);
        assert_eq!(census.ours, ["vm-1"]);
        assert!(census.orphans.is_empty());
    }

    #[test]
    fn what_the_api_does_not_explain_is_listed_with_its_reason() {
        let known = Known {
            held: BTreeMap::from([("vm-1".into(), "uuid-1".into())]),
            unexplained: BTreeMap::from([("vm-1".into(), "its VirtualMachine is gone".into())]),
            ..Known::default()
        };
        let census = sort(&[found("default.web", "uuid-1")], &known);
        assert_eq!(
            census.orphans.first().map(|orphan| orphan.reason.as_str()),
            Some("its VirtualMachine is gone")
        );
        assert_eq!(census.ours, ["vm-1"]);
    }

    #[test]
    fn metadata_that_cannot_be_read_is_neither_foreign_nor_touched() {
        let census = sort(&[Found { unreadable: true, ..found("default.odd", "uuid-3") }], &Known::default());
        assert_eq!(census.orphans.len(), 1);
        assert!(census.foreign.is_empty() && census.ours.is_empty());
    }
}
