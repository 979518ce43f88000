//! Text as the Python client has it, so that both refuse the same with the same words.
//!
//! Python keeps what is no Unicode as lone surrogates: a byte of the environment that is no UTF-8 (PEP 383), and an escape
//! like "\ud800" in JSON. A Rust string cannot hold those, so here the last 2048 characters of Unicode's last private plane
//! stand for them: what has one is printed as Python prints the surrogate, and never sent to the router.

use serde_json::{Number, Value};
use unicode_general_category::{GeneralCategory as Category, get_general_category};

const FIRST_SURROGATE: u32 = 0xD800;
const LAST_SURROGATE: u32 = 0xDFFF;
const STAND_IN: u32 = 0x10_FFFF - (LAST_SURROGATE - FIRST_SURROGATE);

/// Return the character that stands for a lone surrogate.
pub fn stand_in(surrogate: u32) -> char {
    char::from_u32(surrogate.wrapping_sub(FIRST_SURROGATE).wrapping_add(STAND_IN))
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn surrogate(c: char) -> Option<u32> {
    (u32::from(c) >= STAND_IN).then(|| u32::from(c) - STAND_IN + FIRST_SURROGATE)
}

/// Return bytes of the environment as text; each that is no UTF-8 becomes a surrogate (PEP 383).
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut found = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        found.push_str(chunk.valid());
        found.extend(chunk.invalid().iter().map(|&byte| stand_in(0xDC00 + u32::from(byte))));
    }
    found
}

/// Return how many bytes of the environment a text was.
pub fn byte_count(text: &str) -> usize {
    text.chars().map(|c| if surrogate(c).is_some() { 1 } else { c.len_utf8() }).sum()
}

/// Tell whether a text is Unicode, which is all that protobuf carries.
pub fn is_unicode(text: &str) -> bool {
    !text.chars().any(|c| surrogate(c).is_some())
}

/// `str.isprintable` for one character.
pub fn is_printable(c: char) -> bool {
    use Category::*;
    c == ' '
        || !matches!(
            get_general_category(c),
            Control
                | Format
                | Surrogate
                | PrivateUse
                | Unassigned
                | LineSeparator
                | ParagraphSeparator
                | SpaceSeparator
        )
}

/// `str.isspace` for one character: Unicode's white space, and four separators that Python counts as well.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `repr` of a text.
pub fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        let point = surrogate(c).unwrap_or(u32::from(c));
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if c == quote => out.extend(['\\', c]),
            _ if is_printable(c) => out.push(c),
            _ if point < 0x100 => out.push_str(&format!("\\x{point:02x}")),
            _ if point < 0x1_0000 => out.push_str(&format!("\\u{point:04x}")),
            _ => out.push_str(&format!("\\U{point:08x}")),
        }
    }
    out.push(quote);
    out
}

/// Python's `repr` of a JSON value.
pub fn repr_value(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => repr_number(number),
        Value::String(text) => repr(text),
        Value::Array(each) => format!("[{}]", each.iter().map(repr_value).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, each)| format!("{}: {}", repr(key), repr_value(each)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Python's `str` of a JSON value: a text as it is.
pub fn str_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        _ => repr_value(value),
    }
}

/// Tell whether a number is an integer to Python, which is so by how it is written.
pub fn is_integer(number: &Number) -> bool {
    !number.to_string().contains(['.', 'e', 'E'])
}

/// Return a number as Python's `float` has it: one out of range is infinite.
pub fn as_float(number: &Number) -> f64 {
    number.to_string().parse().unwrap_or(f64::NAN)
}

fn repr_number(number: &Number) -> String {
    if is_integer(number) {
        let digits = number.to_string();
        return if digits == "-0" { "0".to_owned() } else { digits };
    }
    let value = as_float(number);
    if !value.is_finite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> String {
        repr_value(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn texts_are_printed_as_python_prints_them() {
        for (text, wanted) in [
            ("plain", "'plain'"),
            ("it's", "\"it's\""),
            ("both ' and \"", "'both \\' and \"'"),
            ("a\nb\t\\\x07\u{7f}", "'a\\nb\\t\\\\\\x07\\x7f'"),
            ("é ä 😀", "'é ä 😀'"),
            ("\u{a0}\u{200b}\u{feff}\u{e0001}", "'\\xa0\\u200b\\ufeff\\U000e0001'"),
        ] {
            assert_eq!(repr(text), wanted);
        }
        assert_eq!(repr(&from_bytes(b"a\xff\xe2\x82")), "'a\\udcff\\udce2\\udc82'");
    }

    #[test]
    fn numbers_are_printed_as_python_prints_them() {
        for (text, wanted) in [
            ("7", "7"),
            ("-0", "0"),
            ("-0.0", "-0.0"),
            ("1e5", "100000.0"),
            ("1e16", "1e+16"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("0.00001", "1e-05"),
            ("0.0001", "0.0001"),
            ("1.5e300", "1.5e+300"),
            ("1e999", "inf"),
            ("-1e999", "-inf"),
        ] {
            assert_eq!(number(text), wanted);
        }
        assert_eq!(number("[true, null, {\"a\": [1.0]}]"), "[True, None, {'a': [1.0]}]");
    }

    #[test]
    fn bytes_that_are_no_text_count_as_bytes() {
        assert_eq!(byte_count(&from_bytes(b"\xff\xfeab")), 4);
        assert!(!is_unicode(&from_bytes(b"\xff")));
        assert!(is_unicode("ä\u{fffd}"));
    }
}
