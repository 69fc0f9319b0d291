//! A tree of XML elements and its text. The only file that writes markup.

use std::{borrow::Cow, io};

use quick_xml::{
    Writer,
    events::{BytesEnd, BytesStart, BytesText, Event},
};

/// An element to be written.
#[derive(Debug, Clone)]
pub(crate) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Text(String),
    Elements(Vec<Element>),
}

impl Element {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), content: Content::Elements(Vec::new()) }
    }

    /// An element that holds only text.
    pub(crate) fn text(name: &'static str, text: impl ToString) -> Self {
        Self { name, attributes: Vec::new(), content: Content::Text(text.to_string()) }
    }

    pub(crate) fn attr(mut self, name: &'static str, value: impl ToString) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    pub(crate) fn attr_opt(self, name: &'static str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.attr(name, value),
            None => self,
        }
    }

    pub(crate) fn child(self, child: Element) -> Self {
        self.children([child])
    }

    /// Appends children; a text is replaced by them.
    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        match &mut self.content {
            Content::Elements(list) => list.extend(children),
            Content::Text(_) => self.content = Content::Elements(children.into_iter().collect()),
        }
        self
    }

    /// The document.
    pub(crate) fn render(&self) -> String {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        // Writing to memory does not fail.
        let _ = self.write(&mut writer);
        let mut text = String::from_utf8(writer.into_inner()).unwrap_or_default();
        text.push('\n');
        text
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
        let mut start = BytesStart::new(self.name);
        for (name, value) in &self.attributes {
            start.push_attribute((*name, representable(value).as_ref()));
        }
        match &self.content {
            Content::Elements(children) if children.is_empty() => writer.write_event(Event::Empty(start)),
            Content::Elements(children) => {
                writer.write_event(Event::Start(start))?;
                for child in children {
                    child.write(writer)?;
                }
                writer.write_event(Event::End(BytesEnd::new(self.name)))
            }
            Content::Text(text) => {
                let text = quick_xml::escape::escape(representable(text)).replace('\r', "&#13;");
                writer.write_event(Event::Start(start))?;
                writer.write_event(Event::Text(BytesText::from_escaped(text)))?;
                writer.write_event(Event::End(BytesEnd::new(self.name)))
            }
        }
    }
}

/// Whether XML 1.0 can hold this character at all, escaped or not.
fn is_representable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// `text` with what XML cannot hold replaced. Such text is refused long before; this keeps a document a document.
fn representable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_representable) {
        Cow::Borrowed(text)
    } else {
        text.chars().map(|c| if is_representable(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_makes_a_document_that_reads_back(value in any::<String>(), text in any::<String>()) {
            let xml = Element::new("a").attr("v", &value).child(Element::text("b", &text)).render();
            let document = roxmltree::Document::parse(&xml).unwrap();
            let root = document.root_element();
            prop_assert_eq!(root.attribute("v").unwrap(), representable(&value));
            let read = root.first_element_child().unwrap().text().unwrap_or_default();
            prop_assert_eq!(read, representable(&text));
        }
    }
}
