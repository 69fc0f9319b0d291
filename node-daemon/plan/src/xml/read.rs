//! Reads XML that others wrote: bounded, never trusted, errors instead of panics.

use std::str::FromStr;

use roxmltree::{Document, Node, ParsingOptions};
use thiserror::Error;

/// Largest document that is read. A domain with every device Vireo knows has some 60 KiB.
const MAX_BYTES: usize = 4 << 20;
const MAX_NODES: u32 = 200_000;

/// Why a document cannot be read. None of these goes away by itself: somebody has to look at the document.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum XmlError {
    /// Larger than anything libvirt writes.
    #[error("the document is larger than this version reads ({0})")]
    TooLarge(String),
    /// Not XML.
    #[error("not well-formed XML: {0}")]
    Malformed(String),
    /// Another kind of document.
    #[error("expected a <{expected}> document, found <{found}>")]
    Root {
        /// Element wanted.
        expected: &'static str,
        /// Element found.
        found: String,
    },
    /// Something every such document has is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that cannot be read.
    #[error("{path} has the unreadable value \"{value}\"")]
    Invalid {
        /// Where.
        path: &'static str,
        /// What stands there, shortened.
        value: String,
    },
}

impl XmlError {
    pub(crate) fn invalid(path: &'static str, value: &str) -> Self {
        Self::Invalid { path, value: shortened(value) }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Opens a document whose root element is `root` and hands it to `read`.
pub(crate) fn with_document<T>(
    xml: &str,
    root: &'static str,
    read: impl FnOnce(Node<'_, '_>) -> Result<T, XmlError>,
) -> Result<T, XmlError> {
    if xml.len() > MAX_BYTES {
        return Err(XmlError::TooLarge(format!("{} bytes", xml.len())));
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options)
        .map_err(|error| XmlError::Malformed(shortened(&error.to_string())))?;
    let element = document.root_element();
    if element.tag_name().name() != root {
        return Err(XmlError::Root { expected: root, found: shortened(element.tag_name().name()) });
    }
    read(element)
}

/// What the readers of device families need of a node.
pub(crate) trait NodeExt<'a, 'input: 'a>: Sized {
    /// First child element of this name.
    fn child(&self, name: &str) -> Option<Node<'a, 'input>>;
    /// All child elements of this name.
    fn all(&self, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>>;
    /// Text of the first child element of this name.
    fn child_text(&self, name: &str) -> Option<&'a str>;
    /// Attribute of a child element.
    fn child_attr(&self, child: &str, name: &str) -> Option<&'a str>;
    /// Attribute read as a number or another type; `path` names it in an error.
    fn parsed<T: FromStr>(&self, name: &str, path: &'static str) -> Result<Option<T>, XmlError>;
    /// Attribute that every such element has.
    fn required(&self, name: &str, path: &'static str) -> Result<&'a str, XmlError>;
}

impl<'a, 'input: 'a> NodeExt<'a, 'input> for Node<'a, 'input> {
    fn child(&self, name: &str) -> Option<Node<'a, 'input>> {
        self.children().find(|node| node.is_element() && node.tag_name().name() == name)
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
        self.children().filter(move |node| node.is_element() && node.tag_name().name() == name)
    }

    fn child_text(&self, name: &str) -> Option<&'a str> {
        self.child(name).map(|node| node.text().unwrap_or_default())
    }

    fn child_attr(&self, child: &str, name: &str) -> Option<&'a str> {
        self.child(child).and_then(|node| node.attribute(name))
    }

    fn parsed<T: FromStr>(&self, name: &str, path: &'static str) -> Result<Option<T>, XmlError> {
        self.attribute(name).map(|text| number(text, path)).transpose()
    }

    fn required(&self, name: &str, path: &'static str) -> Result<&'a str, XmlError> {
        self.attribute(name).ok_or(XmlError::Missing(path))
    }
}

/// `text` as a value of another type.
pub(crate) fn number<T: FromStr>(text: &str, path: &'static str) -> Result<T, XmlError> {
    text.trim().parse().map_err(|_| XmlError::invalid(path, text))
}

/// A number as libvirt writes parts of addresses: `0x1f` or `31`.
pub(crate) fn hex_or_decimal(text: &str, path: &'static str) -> Result<u32, XmlError> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| XmlError::invalid(path, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_documents_are_errors() {
        let open = |xml: &str| with_document(xml, "domain", |_| Ok(())).unwrap_err();
        assert!(matches!(open(""), XmlError::Malformed(_)));
        assert!(matches!(open("<network/>"), XmlError::Root { .. }));
        assert!(matches!(open(&"<a>".repeat(100_000)), XmlError::Malformed(_)));
        assert!(matches!(
            open(&format!("<domain>{}</domain>", " ".repeat(MAX_BYTES))),
            XmlError::TooLarge(_)
        ));
        let bomb = r#"<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><domain>&b;</domain>"#;
        assert!(matches!(open(bomb), XmlError::Malformed(_)));
    }
}
