//! JSON as the Python client reads it: serde_json, but what is no Unicode in a text is kept until somebody uses it.
//!
//! A "\ud800" without its other half is JSON by its grammar and no text (RFC 8259 section 8.2). serde_json would refuse the
//! whole document, so that a DEL would fail by a label that only ADD uses; text.rs says what stands for it here.

use std::borrow::Cow;

use serde_json::Value;

use crate::text::stand_in;

/// Return the value of a JSON text in UTF-8, or why it is none.
pub fn read(content: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(content).map_err(|error| error.to_string())?;
    serde_json::from_str(&without_lone_surrogates(text)).map_err(|error| error.to_string())
}

/// Put stand-ins in the place of escapes that are halves of a character.
fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let size = match (escaped(rest), rest.get(6..).and_then(escaped)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(half @ 0xD800..=0xDFFF), _) => {
                out.push(stand_in(half));
                rest = &rest[6..];
                continue;
            }
            // Any other, with what it escapes: that may be a backslash.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&rest[..size]);
        rest = &rest[size..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Return the number of an escape "\uXXXX" that a text begins with.
fn escaped(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{is_unicode, repr_value};

    fn printed(json: &str) -> String {
        repr_value(&read(json.as_bytes()).unwrap())
    }

    #[test]
    fn halves_of_characters_are_kept() {
        assert_eq!(printed(r#""a\ud800b""#), r"'a\ud800b'");
        assert_eq!(printed(r#""\ud83d\ude00""#), "'😀'");
        assert_eq!(printed(r#""\ud83d\ud83d\ude00\ude00""#), r"'\ud83d😀\ude00'");
        assert_eq!(printed(r#""\\ud800""#), r"'\\ud800'");
        assert_eq!(printed(r#"{"\udfff": "\\\udc00\n"}"#), r"{'\udfff': '\\\udc00\n'}");
        assert!(!is_unicode(read(br#""\ud800""#).unwrap().as_str().unwrap()));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in
            ["", "{", "\\ud800", "\"\\ud80\"", "\"\\ud800", "\"\\udzzz\"", "1 2", "NaN", "\u{feff}1", "\"\\ud800\\"]
        {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        assert!(read(b"\xff\xfe").is_err());
        assert!(read("[".repeat(100_000).as_bytes()).is_err());
    }
}
