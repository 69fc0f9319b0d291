//! What is wrong with a spec: each fault names field, value and remedy.

use vireo_crds::reasons;

use crate::plan::WaitFor;

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// CamelCase reason.
    pub reason: &'static str,
    /// Field, such as `spec.memory.size`.
    pub path: String,
    /// What is wrong and what to do, without the field.
    pub message: String,
    /// A person must act; else it cures itself.
    pub stalls: bool,
    /// A change of this may cure it.
    pub waits_for: Option<WaitFor>,
}

impl Fault {
    /// A value that is impossible.
    pub fn refused(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of(reasons::REFUSED, path, message)
    }

    /// A value that is impossible, with a reason of its own.
    pub fn of(reason: &'static str, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, path: path.into(), message: message.into(), stalls: true, waits_for: None }
    }

    /// The same fault, which cures itself when this changes.
    pub fn until(self, waits_for: WaitFor) -> Self {
        Self { stalls: false, ..self.unless(waits_for) }
    }

    /// The same fault, which a change of this may cure too.
    pub fn unless(mut self, waits_for: WaitFor) -> Self {
        self.waits_for = Some(waits_for);
        self
    }
}

/// All faults in one text.
pub(crate) fn text(faults: &[Fault]) -> String {
    let each: Vec<_> = faults.iter().map(|f| format!("{}: {}", f.path, f.message)).collect();
    each.join("; ")
}

/// The fault that names the condition's reason: one that a person must cure goes before one that waits.
pub(crate) fn leading(faults: &[Fault]) -> Option<&Fault> {
    faults.iter().find(|f| f.stalls).or(faults.first())
}

/// A value as it is shown: short, and without characters that would garble a terminal.
pub(crate) fn shown(value: &str) -> String {
    let cut: String = value.chars().take(60).flat_map(char::escape_debug).collect();
    if value.chars().count() > 60 { format!("\"{cut}…\"") } else { format!("\"{cut}\"") }
}

/// Refuses characters that cannot be written into libvirt's XML or would end a line in it.
pub(crate) fn text_fault(path: &str, value: &str) -> Option<Fault> {
    let bad = value.chars().find(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))?;
    Some(Fault::refused(
        path,
        format!("{} contains the character U+{:04X}; remove it", shown(value), u32::from(bad)),
    ))
}

/// Refuses a path that is not relative or leaves the directory it is relative to.
pub(crate) fn path_fault(path: &str, value: &str) -> Option<Fault> {
    let fault = |why: &str| {
        Some(Fault::refused(
            path,
            format!("{} {why}; name a file relative to the domain's files directory", shown(value)),
        ))
    };
    if value.starts_with('/') {
        return fault("is absolute");
    }
    if value.split('/').any(|part| part == "..") {
        return fault("leaves the domain");
    }
    if value.split('/').any(|part| part.is_empty() || part == ".") {
        return fault("has an empty or \".\" component");
    }
    if value.len() > 255 {
        return fault("is longer than 255 bytes");
    }
    text_fault(path, value)
}

/// Refuses a name that is no DNS label of at most `max` characters.
pub(crate) fn label_fault(path: &str, value: &str, max: usize) -> Option<Fault> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if value.len() <= max && inner && edge(value.chars().next()) && edge(value.chars().last()) {
        return None;
    }
    Some(Fault::refused(
        path,
        format!("{} is no name; use at most {max} lower-case letters, digits and '-'", shown(value)),
    ))
}
