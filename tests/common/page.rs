//! A minimal HTML parser for tests of pages: strictly nested elements with attributes and texts.

use std::collections::{BTreeMap, BTreeSet};

/// Elements with tags that separate words.
const BLOCKS: [&str; 14] =
    ["td", "th", "tr", "li", "dd", "dt", "p", "div", "small", "summary", "h2", "h3", "figcaption", "text"];
/// Elements without content.
const VOID: [&str; 6] = ["meta", "img", "br", "hr", "link", "input"];

/// An element.
#[derive(Debug, Clone)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    /// Text of the element and its descendants, unescaped.
    pub(crate) text: String,
    /// Index of the enclosing element.
    pub(crate) parent: Option<usize>,
}

impl Element {
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn has_class(&self, class: &str) -> bool {
        self.attribute("class").is_some_and(|c| c.split(' ').any(|c| c == class))
    }
}

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Elements in the order of their start tags.
    pub(crate) elements: Vec<Element>,
    html: String,
}

/// Reads `html`.
///
/// # Panics
/// If tags are not nested, or a tag or an escape is invalid.
pub(crate) fn parse(html: &str) -> Page {
    let body = html.strip_prefix("<!doctype html>\n").expect("a doctype");
    let (mut elements, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut rest = body;
    while let Some(at) = rest.find('<') {
        let raw = open.last().is_some_and(|i| elements[*i].name == "style");
        let text = if raw { rest[..at].to_owned() } else { unescaped(&rest[..at]) };
        open.iter().for_each(|i| elements[*i].text.push_str(&text));
        rest = &rest[at + 1..];
        // Quoted attributes may contain `>`.
        let mut quoted = false;
        let end = rest.find(|c: char| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let tag = &rest[..end.expect("a tag that ends")];
        rest = &rest[tag.len() + 1..];
        if BLOCKS.contains(&tag.trim_start_matches('/').split(' ').next().unwrap_or_default()) {
            open.iter().for_each(|i| elements[*i].text.push(' '));
        }
        if let Some(name) = tag.strip_prefix('/') {
            let last = open.pop().unwrap_or_else(|| panic!("</{name}> without a beginning"));
            assert_eq!(elements[last].name, name, "</{name}> ends another element");
            continue;
        }
        let (tag, closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.starts_with(|c: char| c.is_ascii_alphabetic()), "<{tag}>");
        let parent = open.last().copied();
        elements.push(Element {
            name: name.to_owned(),
            attributes: attributes_of(attributes),
            text: String::new(),
            parent,
        });
        if !closed && !VOID.contains(&name) {
            open.push(elements.len() - 1);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "elements that do not end: {open:?}");
    Page { elements, html: html.to_owned() }
}

fn attributes_of(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find([' ', '=']).unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        rest = &rest[end..];
        let value = match rest.strip_prefix("=\"") {
            Some(quoted) => {
                let end = quoted.find('"').expect("a quotation mark that closes");
                rest = &quoted[end + 1..];
                unescaped(&quoted[..end])
            }
            None => String::new(),
        };
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "attribute `{name}` in `{text}`");
        found.push((name, value));
        rest = rest.trim_start();
    }
    found
}

fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = rest[at..].find(';').unwrap_or_else(|| panic!("an escape that does not end in `{text}`")) + at;
        out.push(match &rest[at + 1..end] {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            "nbsp" => ' ',
            other => panic!("escape `{other}` in `{text}`"),
        });
        rest = &rest[end + 1..];
    }
    out + rest
}

/// `text` with single spaces between words.
fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Page {
    /// The text of the body with single spaces, without the style sheet.
    pub(crate) fn text(&self) -> String {
        let main = self.elements.iter().position(|e| e.name == "body").expect("a body");
        self.text_of(main)
    }

    fn text_of(&self, at: usize) -> String {
        spaced(&self.elements[at].text)
    }

    /// Whether the element is a child of the head.
    pub(crate) fn is_in_head(&self, element: &Element) -> bool {
        element.parent.is_some_and(|p| self.elements[p].name == "head")
    }

    /// Texts of the cells of all tables of `class`, row by row.
    pub(crate) fn tables(&self, class: &str) -> Vec<Vec<Vec<String>>> {
        let within = |i: usize, ancestor: usize| {
            let mut up = self.elements[i].parent;
            while let Some(p) = up.filter(|p| *p != ancestor) {
                up = self.elements[p].parent;
            }
            up.is_some()
        };
        let named = |name: &'static str| (0..self.elements.len()).filter(move |i| self.elements[*i].name == name);
        let tables = named("table").filter(|i| self.elements[*i].has_class(class));
        let cells = |row: usize| {
            let own = (0..self.elements.len()).filter(move |i| self.elements[*i].parent == Some(row));
            own.map(|i| self.text_of(i)).collect::<Vec<_>>()
        };
        tables.map(|t| named("tr").filter(|r| within(*r, t)).map(cells).collect()).collect()
    }

    /// Fails unless the page is self-contained, without scripts, and accessible to screen readers.
    pub(crate) fn ensure_sound(&self) {
        let mut ids = BTreeMap::new();
        for e in &self.elements {
            if let Some(id) = e.attribute("id") {
                assert!(!id.is_empty() && ids.insert(id, &e.name).is_none(), "id `{id}` twice");
            }
        }
        for (i, e) in self.elements.iter().enumerate() {
            let shown = || format!("<{} {:?}> {}", e.name, e.attributes, e.text.chars().take(60).collect::<String>());
            let forbidden = ["script", "iframe", "object", "embed", "link", "form", "base"];
            assert!(!forbidden.contains(&e.name.as_str()), "{}", shown());
            for (name, value) in &e.attributes {
                assert!(!name.starts_with("on"), "{}", shown());
                if matches!(name.as_str(), "href" | "src") {
                    let inner = value.strip_prefix('#').is_some_and(|id| ids.contains_key(id));
                    assert!(
                        inner
                            || value.starts_with("data:image/png;base64,")
                            || value.starts_with("data:application/json;base64,"),
                        "{}",
                        shown()
                    );
                }
                if matches!(name.as_str(), "aria-labelledby" | "aria-describedby") {
                    assert!(value.split(' ').all(|id| ids.contains_key(id)), "{}", shown());
                }
            }
            let children = || self.elements.iter().filter(|c| c.parent == Some(i)).map(|c| c.name.as_str());
            let good = match e.name.as_str() {
                "img" => e.attribute("alt").is_some_and(|a| !a.is_empty()),
                "th" => e.attribute("scope").is_some(),
                "table" => children().next() == Some("thead"),
                "figure" => children().any(|c| c == "figcaption"),
                "svg" if e.attribute("role") == Some("img") => children().next() == Some("title"),
                "svg" => e.attribute("aria-hidden").is_some() || e.parent.is_some_and(|p| self.is_within_svg(p)),
                "html" => e.attribute("lang").is_some(),
                "style" => !e.text.contains("url(") && !e.text.contains("@import") && !e.text.contains('<'),
                _ => true,
            };
            assert!(good, "{}", shown());
        }
        let count = |name: &str| self.elements.iter().filter(|e| e.name == name).count();
        assert_eq!((count("main"), count("h1"), count("body")), (1, 1, 1));
        let levels: BTreeSet<&str> = ["h2", "h3", "h4"].into_iter().filter(|h| count(h) > 0).collect();
        assert!(!levels.contains("h4") || levels.contains("h3"), "a level of headings is left out");
        assert!(self.html.contains("<meta name=\"color-scheme\" content=\"light dark\">"));
        assert!(
            !self.html.contains("http://") && !self.html.contains("https://"),
            "the page refers to something outside"
        );
    }

    fn is_within_svg(&self, at: usize) -> bool {
        self.elements[at].name == "svg" || self.elements[at].parent.is_some_and(|p| self.is_within_svg(p))
    }
}
