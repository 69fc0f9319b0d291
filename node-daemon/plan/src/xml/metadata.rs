//! Our element in a domain's metadata: whose guest it is, under which grant, built from what. The truth about a
//! running guest, readable when the ledger and the API server are gone.

use roxmltree::Node;
use serde::{Deserialize, Serialize};
use vireo_crds::{meta::LIBVIRT_METADATA_NS, v1alpha1::Grant};

use super::{
    element::Element,
    read::{NodeExt, XmlError, number, with_document},
};

/// Prefix under which libvirt is asked to keep the element (`key` of `virDomainSetMetadata`).
pub const METADATA_KEY: &str = "vireo";

/// What a domain says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainMetadata {
    /// Installation that made it.
    pub installation_id: String,
    /// uid of the VirtualMachine.
    pub vm_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Grant it runs under.
    pub grant: Grant,
    /// Generation of the spec it was built from.
    pub generation: i64,
    /// Hash of what it was built from.
    pub spec_hash: String,
    /// What the daemon notes down to find it again after a restart, such as when a graceful stop ends.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub notes: serde_json::Map<String, serde_json::Value>,
}

impl DomainMetadata {
    /// As part of a domain document.
    pub(crate) fn element(&self) -> Element {
        let names = ["vireo:domain", "vireo:vm", "vireo:grant", "vireo:built", "vireo:notes"];
        Element::new("metadata").child(self.tree(names).attr("xmlns:vireo", LIBVIRT_METADATA_NS))
    }

    fn tree(&self, [domain, vm, grant, built, notes]: [&'static str; 5]) -> Element {
        let element = Element::new(domain)
            .attr("installation", &self.installation_id)
            .child(
                Element::new(vm)
                    .attr("uid", &self.vm_uid)
                    .attr("namespace", &self.namespace)
                    .attr("name", &self.name),
            )
            .child(
                Element::new(grant)
                    .attr("host", &self.grant.host)
                    .attr("incarnation", &self.grant.incarnation)
                    .attr("epoch", self.grant.epoch)
                    .attr("id", &self.grant.id),
            )
            .child(Element::new(built).attr("generation", self.generation).attr("specHash", &self.spec_hash));
        if self.notes.is_empty() {
            return element;
        }
        element.child(Element::text(notes, serde_json::to_string(&self.notes).unwrap_or_default()))
    }

    fn of(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let part = |name, path| node.child(name).ok_or(XmlError::Missing(path));
        let vm = part("vm", "metadata/vm")?;
        let grant = part("grant", "metadata/grant")?;
        let built = part("built", "metadata/built")?;
        let text =
            |node: Node<'_, '_>, name: &str, path: &'static str| node.required(name, path).map(str::to_owned);
        Ok(Self {
            installation_id: text(node, "installation", "metadata/@installation")?,
            vm_uid: text(vm, "uid", "metadata/vm/@uid")?,
            namespace: text(vm, "namespace", "metadata/vm/@namespace")?,
            name: text(vm, "name", "metadata/vm/@name")?,
            grant: Grant {
                host: text(grant, "host", "metadata/grant/@host")?,
                incarnation: text(grant, "incarnation", "metadata/grant/@incarnation")?,
                epoch: number(grant.required("epoch", "metadata/grant/@epoch")?, "metadata/grant/@epoch")?,
                id: text(grant, "id", "metadata/grant/@id")?,
            },
            generation: number(
                built.required("generation", "metadata/built/@generation")?,
                "metadata/built/@generation",
            )?,
            spec_hash: text(built, "specHash", "metadata/built/@specHash")?,
            notes: node.child_text("notes").map_or_else(
                || Ok(serde_json::Map::new()),
                |text| serde_json::from_str(text).map_err(|_| XmlError::invalid("metadata/notes", text)),
            )?,
        })
    }
}

/// Our element of a domain. None: the domain is not ours. An error: it says it is, and cannot be understood.
pub(crate) fn of_domain(domain: Node<'_, '_>) -> Result<Option<DomainMetadata>, XmlError> {
    let Some(metadata) = domain.child("metadata") else { return Ok(None) };
    let ours = metadata
        .children()
        .find(|node| node.is_element() && node.tag_name().namespace() == Some(LIBVIRT_METADATA_NS));
    ours.map(DomainMetadata::of).transpose()
}

/// Our element of a domain document, whatever else is in it. None: the domain is not ours. An error: it says it is
/// ours, and cannot be understood; it is to be reported, never touched.
pub fn read(domain_xml: &str) -> Result<Option<DomainMetadata>, XmlError> {
    with_document(domain_xml, "domain", of_domain)
}

/// The element as `virDomainSetMetadata` takes it: without the namespace, which libvirt puts on.
pub fn element_for_set(metadata: &DomainMetadata) -> String {
    metadata.tree(["domain", "vm", "grant", "built", "notes"]).render()
}

/// The element as `virDomainGetMetadata` gives it: with or without the namespace, by version.
pub fn parse_element(xml: &str) -> Result<DomainMetadata, XmlError> {
    with_document(xml, "domain", DomainMetadata::of)
}
