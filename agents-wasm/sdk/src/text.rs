//! Small helpers for text and JSON from an agent that may say anything.

use serde_json::Value;

/// The beginning of a text, cut at a character, with an ellipsis where it was cut.
pub fn shorten(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.into();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// A line as a JSON object, or `None` for anything else.
pub fn json_object(line: &str) -> Option<Value> {
    let line = line.trim();
    if !line.starts_with('{') {
        return None;
    }
    serde_json::from_str::<Value>(line).ok().filter(Value::is_object)
}

/// A member that is a string, or the empty text.
pub fn str_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A member that is a count, or 0; more than 32 bits are cut to the most that the interface carries.
pub fn count_of(value: &Value, key: &str) -> u32 {
    value.get(key).and_then(Value::as_u64).map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// US dollars as millionths.
pub fn micro_usd(dollars: f64) -> u32 {
    // A float-to-integer cast saturates, and takes NaN to 0.
    (dollars * 1e6).round() as u32
}

/// The content of a tool's answer: a text, or a list of blocks of which the texts count.
pub fn flatten(content: &Value) -> String {
    match content {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts: Vec<String> = blocks
                .iter()
                .map(|block| match block.get("text").and_then(Value::as_str) {
                    Some(text) => text.into(),
                    None => format!("[{}]", str_of(block, "type")),
                })
                .collect();
            texts.join("\n")
        }
        other => other.to_string(),
    }
}

/// The last few lines of a stream, for the words of a failure.
#[derive(Debug, Default)]
pub struct Tail(std::collections::VecDeque<String>);

impl Tail {
    const LINES: usize = 5;
    const LINE_BYTES: usize = 500;

    /// Takes a line, and forgets the oldest where there are too many; blank lines do not count.
    pub fn push(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.0.len() == Self::LINES {
            self.0.pop_front();
        }
        self.0.push_back(shorten(line.trim_end(), Self::LINE_BYTES));
    }

    /// The lines in one.
    pub fn join(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest line.
    pub fn last(&self) -> &str {
        self.0.back().map_or("", String::as_str)
    }
}

/// What a message says about waiting: the number in `retry after 600s`, in seconds.
pub fn retry_after(text: &str) -> Option<u32> {
    let text = text.to_ascii_lowercase();
    let rest = &text[text.find("retry after ")? + "retry after ".len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_a_character() {
        assert_eq!(shorten("añb", 2), "a…");
        assert_eq!(shorten("añb", 4), "añb");
    }

    #[test]
    fn the_wait_is_read_from_a_message() {
        assert_eq!(retry_after("Suggested retry after 600s.]"), Some(600));
        assert_eq!(retry_after("later"), None);
    }

    #[test]
    fn dollars_saturate() {
        assert_eq!(micro_usd(0.012512), 12512);
        assert_eq!(micro_usd(-1.0), 0);
        assert_eq!(micro_usd(f64::NAN), 0);
    }
}
