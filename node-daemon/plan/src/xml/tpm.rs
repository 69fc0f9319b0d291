//! The TPM: emulated by swtpm, its state in a directory.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt, token::tokens};

tokens! {
    /// Interface the guest sees.
    pub enum TpmModel {
        /// Command-response buffer, on PCs.
        Crb = "tpm-crb",
        /// FIFO, where there is no CRB.
        Tis = "tpm-tis",
    }
}

/// A TPM 2.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tpm {
    /// Interface.
    pub model: TpmModel,
    /// Directory of its state. None: libvirt (before 10.10) cannot be told, and keeps it under its own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
}

impl Tpm {
    pub(crate) fn element(&self) -> Element {
        // Without persistent_state libvirt deletes the state when a transient domain ends.
        let backend = Element::new("backend")
            .attr("type", "emulator")
            .attr("version", "2.0")
            .attr("persistent_state", "yes");
        let source =
            self.state_dir.as_ref().map(|dir| Element::new("source").attr("type", "dir").attr("path", dir));
        Element::new("tpm").attr("model", &self.model).child(backend.children(source))
    }

    pub(crate) fn of(devices: Node<'_, '_>) -> Option<Self> {
        let node = devices.child("tpm")?;
        Some(Self {
            model: TpmModel::from(node.attribute("model").unwrap_or_default()),
            state_dir: node
                .child("backend")
                .and_then(|backend| backend.child_attr("source", "path"))
                .map(Into::into),
        })
    }
}
