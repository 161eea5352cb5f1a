//! Input from clients in messages and logs.

use std::ascii;

/// The maximum number of bytes of an input that are written. Ordinary clients send less.
pub const MAX_INPUT_BYTES: usize = 200;

/// Appends input from a client as visible ASCII, or `-` if it is empty. Other bytes and spaces are escaped,
/// so that a client cannot break the line, add a field to it, or send control characters to a terminal.
/// Input beyond `MAX_INPUT_BYTES` is cut off.
pub fn push_printable(text: &mut String, input: &str) {
    if input.is_empty() {
        text.push('-');
    }
    for byte in input.bytes().take(MAX_INPUT_BYTES) {
        match byte {
            b' ' => text.push_str("\\x20"),
            _ => text.extend(ascii::escape_default(byte).map(char::from)),
        }
    }
}
