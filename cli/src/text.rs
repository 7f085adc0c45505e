//! Text from elsewhere, made harmless for a terminal, and figures for people.

use std::borrow::Cow;

/// Escapes everything that could drive a terminal or reorder a line: control characters (also the C1 set, which some terminals
/// obey in UTF-8) and bidirectional controls. Tabs stay.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// The same for text of several lines.
#[must_use]
pub fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\t') || is_bidi(c)
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Finished JSON text, with what a terminal might obey written as `\uXXXX`. Such characters stand only inside strings there.
#[must_use]
pub fn clean_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

/// The first line, cut to `width` characters.
#[must_use]
pub fn shorten(text: &str, width: usize) -> String {
    let mut lines = text.trim().lines();
    let first = lines.next().unwrap_or_default();
    let cut = first.chars().count() > width || lines.next().is_some();
    let mut out: String = first.chars().take(width).collect();
    if cut {
        out.push('…');
    }
    out
}

/// `42s`, `3m 05s`, `2h 07m`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1,234,567`
#[must_use]
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A table of left-aligned columns, two spaces between them.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = head.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_cannot_drive_the_terminal() {
        assert_eq!(clean("plain\ttext, café"), "plain\ttext, café");
        assert_eq!(clean("\x1b]0;owned\x07"), "\\u{1b}]0;owned\\u{7}");
        assert_eq!(clean("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(clean("over\rwritten"), "over\\u{d}written");
        let json = clean_json(&serde_json::to_string("\u{9b}\u{7f}\x1b").unwrap());
        assert_eq!(json, r#""\u009b\u007f\u001b""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), "\u{9b}\u{7f}\x1b");
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!((duration(41.6), duration(185.0), duration(7620.0)), ("42s".into(), "3m 05s".into(), "2h 07m".into()));
        assert_eq!((number(7), number(1234), number(1_234_567)), ("7".into(), "1,234".into(), "1,234,567".into()));
        assert_eq!(shorten("one\ntwo", 10), "one…");
    }
}
