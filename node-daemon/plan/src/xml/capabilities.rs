//! What libvirt says of the machine and of the guests it can run.

use vireo_crds::v1alpha1::Architecture;

use super::read::{NodeExt, XmlError, with_document};

/// CPU models listed at most, and the longest name of one; the API takes no more.
const MAX_MODELS: usize = 512;
const MAX_NAME: usize = 64;

/// The machine, from libvirt's capabilities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// UUID of its board, by which a reboot is told from a replacement; empty if libvirt does not know it.
    pub uuid: String,
    /// Architecture of its processor.
    pub architecture: Architecture,
    /// Nearest named model of its processor.
    pub cpu_model: Option<String>,
}

/// Reads the capabilities of a host.
pub fn machine(xml: &str) -> Result<Machine, XmlError> {
    with_document(xml, "capabilities", |root| {
        let host = root.child("host").ok_or(XmlError::Missing("host"))?;
        let text_of = |name| {
            host.child("cpu")
                .and_then(|cpu| cpu.child_text(name))
                .map(str::trim)
                .filter(|text| !text.is_empty())
        };
        let architecture = match text_of("arch") {
            Some("x86_64" | "i686") => Architecture::x86_64,
            Some("aarch64") => Architecture::aarch64,
            _ => Architecture::Unknown,
        };
        Ok(Machine {
            uuid: host.child_text("uuid").unwrap_or_default().trim().to_lowercase(),
            architecture,
            cpu_model: text_of("model").map(|model| model.chars().take(MAX_NAME).collect()),
        })
    })
}

/// Named CPU models the emulator can give a guest, from the domain capabilities; sorted.
pub fn usable_models(xml: &str) -> Result<Vec<String>, XmlError> {
    with_document(xml, "domainCapabilities", |root| {
        let custom = root
            .child("cpu")
            .and_then(|cpu| cpu.all("mode").find(|mode| mode.attribute("name") == Some("custom")));
        let mut models: Vec<String> = custom
            .into_iter()
            .flat_map(|mode| mode.children())
            .filter(|node| node.has_tag_name("model") && node.attribute("usable") == Some("yes"))
            .filter_map(|node| node.text().map(|text| text.trim().to_owned()))
            .filter(|name| !name.is_empty() && name.len() <= MAX_NAME)
            .collect();
        models.sort();
        models.dedup();
        models.truncate(MAX_MODELS);
        Ok(models)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_cannot_be_used_are_not_listed() {
        let text = "<domainCapabilities><cpu><mode name='host-model' supported='yes'><model>x</model></mode>\
            <mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>EPYC</model>\
            <model usable='yes'>Nehalem</model></mode></cpu></domainCapabilities>";
        assert_eq!(usable_models(text).unwrap(), ["Nehalem", "qemu64"]);
    }

    #[test]
    fn the_machine_is_read_as_libvirt_writes_it() {
        let text = "<capabilities><host><uuid>6F9D8F3E-0000-4000-8000-000000000001</uuid>\
            <cpu><arch>x86_64</arch><model>EPYC-Rome</model></cpu></host></capabilities>";
        let found = machine(text).unwrap();
        assert_eq!(found.uuid, "6f9d8f3e-0000-4000-8000-000000000001");
        assert_eq!(
            (found.architecture, found.cpu_model.as_deref()),
            (Architecture::x86_64, Some("EPYC-Rome"))
        );
        assert!(machine("<capabilities/>").is_err() && machine("<domain/>").is_err());
    }
}
