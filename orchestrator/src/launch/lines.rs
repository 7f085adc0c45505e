//! From raw output to lines, as adapters read them.

use ckrv_shim::protocol::{OutputFrame, Source};

/// Bytes of a line that are kept; the rest of it is dropped.
pub const MAX_LINE: usize = 1 << 20;

/// One line without its newline. Invalid UTF-8 is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub source: Source,
    pub text: String,
    pub truncated: bool,
}

/// Puts lines together from frames; stdout and stderr each have their own unfinished line.
#[derive(Debug, Default)]
pub struct LineSplitter {
    stdout: Partial,
    stderr: Partial,
}

#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Partial {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.bytes.len());
        self.truncated |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self, source: Source) -> Line {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        let truncated = std::mem::take(&mut self.truncated);
        Line { source, text: String::from_utf8_lossy(&bytes).into_owned(), truncated }
    }
}

impl LineSplitter {
    /// The lines that this frame ends.
    pub fn push(&mut self, frame: &OutputFrame) -> Vec<Line> {
        let partial = if frame.source == Source::Stdout { &mut self.stdout } else { &mut self.stderr };
        let mut lines = Vec::new();
        let mut rest = &frame.bytes[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            partial.push(&rest[..end]);
            lines.push(partial.take(frame.source));
            rest = &rest[end + 1..];
        }
        partial.push(rest);
        lines
    }

    /// What was left without a newline at the end.
    pub fn finish(mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        for (partial, source) in [(&mut self.stdout, Source::Stdout), (&mut self.stderr, Source::Stderr)] {
            if !partial.bytes.is_empty() {
                lines.push(partial.take(source));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: Source, text: &[u8]) -> OutputFrame {
        OutputFrame { seq: 1, source, bytes: text.to_vec() }
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_do_not_depend_on_how_bytes_arrive() {
        let text = "one\r\nzwei ü\n\nlast".as_bytes();
        for size in [1, 2, 7, text.len()] {
            let mut splitter = LineSplitter::default();
            let mut lines: Vec<_> = text.chunks(size).flat_map(|c| splitter.push(&frame(Source::Stdout, c))).collect();
            lines.extend(splitter.finish());
            assert_eq!(texts(&lines), ["one", "zwei ü", "", "last"], "chunks of {size}");
        }
    }

    #[test]
    fn a_line_beyond_the_limit_is_cut_and_says_so() {
        let mut splitter = LineSplitter::default();
        assert_eq!(splitter.push(&frame(Source::Stdout, &vec![b'x'; MAX_LINE])), []);
        assert_eq!(splitter.push(&frame(Source::Stderr, b"e\n")).len(), 1);
        let lines = splitter.push(&frame(Source::Stdout, b"yy\nnext\n"));
        assert_eq!((lines[0].text.len(), lines[0].truncated, lines[1].truncated), (MAX_LINE, true, false));
    }
}
