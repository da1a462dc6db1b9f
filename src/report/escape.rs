//! Escapes text for HTML, LaTeX and Markdown.

/// Replaces control characters (except newline and tab) and characters that change the writing direction by U+FFFD.
fn shown(c: char) -> char {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}');
    if turns || (c.is_control() && c != '\n' && c != '\t') { '\u{fffd}' } else { c }
}

/// `text` escaped for HTML and inline SVG, as text or as a quoted attribute value.
pub(super) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(shown) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `text` escaped for a LaTeX document in UTF-8, on one line.
pub(super) fn latex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(shown) {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '"' => out.push_str("''"),
            '`' => out.push_str("\\textasciigrave{}"),
            // Two consecutive hyphens would become a dash.
            '-' if out.ends_with('-') => out.push_str("{}-"),
            '–' => out.push_str("--"),
            '∞' => out.push_str("$\\infty$"),
            '×' => out.push_str("$\\times$"),
            '±' => out.push_str("$\\pm$"),
            '−' => out.push_str("$-$"),
            '↓' => out.push_str("$\\downarrow$"),
            '↑' => out.push_str("$\\uparrow$"),
            '\n' | '\t' => out.push(' '),
            '\u{fffd}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// `text` escaped for a cell of a Markdown table.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(shown) {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\n' | '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_a_format_is_escaped() {
        let hostile = "<b>&\"'\u{1b}[2J\u{202e}</b>";
        assert_eq!(html(hostile), "&lt;b&gt;&amp;&quot;&#39;\u{fffd}[2J\u{fffd}&lt;/b&gt;");
        assert_eq!(
            latex("50% of $x_1^2$ & #3 {a} \\n ~ --- <|>\n\"q\" ∞"),
            "50\\% of \\$x\\_1\\textasciicircum{}2\\$ \\& \\#3 \\{a\\} \\textbackslash{}n \\textasciitilde{} -{}-{}- \
             \\textless{}\\textbar{}\\textgreater{} ''q'' $\\infty$"
        );
        assert_eq!(markdown("a|b *c* _d_ `e` <i>\nf"), "a\\|b \\*c\\* \\_d\\_ \\`e\\` &lt;i&gt; f");
    }
}
