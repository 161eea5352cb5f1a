//! The web page at `/`.
//!
//! Its source is in `src/page/`. Comments and most spaces are left out at compile time, to keep the page
//! small. The hashes in its `Content-Security-Policy` are computed at compile time as well, so that an
//! edited script needs no further step.

use crate::config::Config;
use crate::faults::Faults;
use crate::metrics::Metrics;
use crate::target::Target;

mod sha256;

use sha256::{base64, sha256};

/// The style and the script as they are in the page, between their tags.
const STYLE: &str = text(&STYLE_BYTES);
const SCRIPT: &str = text(&SCRIPT_BYTES);

const STYLE_SOURCE: &str = include_str!("page/style.css");
const SCRIPT_SOURCE: &str = concat!(
    include_str!("page/exposition.js"),
    include_str!("page/script.js")
);

/// The `joints` of CSS, for [`minify`]. Because a line break is among them, no line break is kept.
const STYLE_JOINTS: &str = "{}:;,\n";
/// The `joints` of JavaScript.
const SCRIPT_JOINTS: &str = "{}()[];:,=<>+-*/%!?&|.'`";

static STYLE_BYTES: [u8; minify(STYLE_SOURCE, STYLE_JOINTS, None)] =
    minified(STYLE_SOURCE, STYLE_JOINTS);
static SCRIPT_BYTES: [u8; minify(SCRIPT_SOURCE, SCRIPT_JOINTS, None)] =
    minified(SCRIPT_SOURCE, SCRIPT_JOINTS);

/// The header fields of the page besides its type. Nothing is loaded from anywhere, only this script
/// and this style have an effect, and the script can send requests to this service only.
pub const FIELDS: &[(&str, &str)] = &[
    ("Content-Security-Policy", text(&POLICY)),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
];

const POLICY_PARTS: [&[u8]; 5] = [
    b"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
      frame-ancestors 'none'; script-src 'sha256-",
    &base64(sha256(SCRIPT.as_bytes())),
    b"'; style-src 'sha256-",
    &base64(sha256(STYLE.as_bytes())),
    b"'",
];
static POLICY: [u8; join(&POLICY_PARTS, None)] = joined(&POLICY_PARTS);

/// The parts of the page that do not change while the service runs, escaped for HTML.
pub struct Page {
    host: String,
    app_version: String,
    app_config: String,
    /// The start time of the process, as in the exposition. The script recognizes the process by it.
    start_time: String,
    /// The targets that clients may change, with spaces between them.
    targets: String,
    /// The values of `fail-with`, as options of a list.
    failures: String,
}

impl Page {
    /// Creates the page of a service with this configuration, on this host.
    pub fn new(config: &Config, faults: &Faults, metrics: &Metrics) -> Self {
        let start_time = metrics.process_start_time();
        let targets = Target::all().filter(|target| faults.allows(*target));
        let targets: Vec<_> = targets.map(Target::name).collect();
        let mut failures = String::new();
        for name in faults.failures() {
            failures.push_str("<option>");
            failures.push_str(name);
        }
        Self {
            host: escape_html(&rustix::system::uname().nodename().to_string_lossy()),
            app_version: escape_html(&config.app_version),
            app_config: escape_html(&config.app_config),
            start_time: start_time.map_or_else(String::new, |seconds| seconds.to_string()),
            targets: targets.join(" "),
            failures,
        }
    }

    /// Returns the page as HTML. `settings` are the lines of the response to GET /faults.
    pub fn html(&self, settings: &str) -> String {
        format!(
            include_str!("page/index.html"),
            style = STYLE,
            script = SCRIPT,
            version = env!("CARGO_PKG_VERSION"),
            host = self.host,
            app_version = self.app_version,
            app_config = self.app_config,
            start_time = self.start_time,
            targets = self.targets,
            off = if self.targets.is_empty() {
                ""
            } else {
                " hidden"
            },
            failures = self.failures,
            settings = escape_html(settings),
        )
    }
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Copies a source to `target`, and leaves out characters that have no effect: `//` comments, and line
/// breaks and spaces that separate nothing. A space beside one of the characters in `joints` separates
/// nothing. Text between quotes, backquotes or the slashes of a regular expression is kept. Such text
/// must not contain its own delimiter, not even escaped. A statement that ends with `}` but is not a block
/// needs its semicolon, because line breaks after `}` are left out. Returns the length of the copy.
/// Without a `target`, only the length is computed.
const fn minify(source: &str, joints: &str, mut target: Option<&mut [u8]>) -> usize {
    let source = source.as_bytes();
    let joints = joints.as_bytes();
    let (mut at, mut length) = (0, 0);
    let mut delimiter = 0;
    let mut last = b'\n';
    while at < source.len() {
        let byte = source[at];
        at += 1;
        let next = if at < source.len() { source[at] } else { b'\n' };
        if delimiter != 0 {
            if byte == delimiter {
                delimiter = 0;
            }
        } else if byte == b'/' && next == b'/' {
            while at < source.len() && source[at] != b'\n' {
                at += 1;
            }
            continue;
        } else if byte == b'\n' {
            let is_between_parts = matches!(last, b'\n' | b'{' | b'}' | b'(' | b'[' | b',' | b';');
            if is_between_parts || contains(joints, b'\n') {
                continue;
            }
        } else if byte == b' ' {
            // Between two equal characters, the space is kept: without it, `+ +` would become `++`.
            let is_needed = !contains(joints, last) && !contains(joints, next) || last == next;
            if last == b'\n' || next == b' ' || !is_needed {
                continue;
            }
        } else if matches!(byte, b'\'' | b'"' | b'`')
            || byte == b'/' && matches!(last, b'(' | b',' | b'=')
        {
            delimiter = byte;
        }
        // `let` is shorter, and code that works with `const` works the same with `let`.
        if delimiter == 0 && at_word(source, at - 1, b"const ") {
            if let Some(target) = &mut target {
                target[length] = b'l';
                target[length + 1] = b'e';
                target[length + 2] = b't';
            }
            length += 3;
            at += 4;
            last = b't';
            continue;
        }
        // The last statement of a block needs no semicolon or line break after it.
        if byte == b'}' && matches!(last, b';' | b'\n') && length > 0 {
            length -= 1;
        }
        if let Some(target) = &mut target {
            target[length] = byte;
        }
        length += 1;
        last = byte;
    }
    length
}

/// Returns whether `word` is at this position, and not as the end of a longer word.
const fn at_word(source: &[u8], at: usize, word: &[u8]) -> bool {
    let mut index = 0;
    while index < word.len() {
        if at + index >= source.len() || source[at + index] != word[index] {
            return false;
        }
        index += 1;
    }
    at == 0 || !source[at - 1].is_ascii_alphanumeric()
}

const fn contains(bytes: &[u8], byte: u8) -> bool {
    let mut index = 0;
    while index < bytes.len() {
        if bytes[index] == byte {
            return true;
        }
        index += 1;
    }
    false
}

const fn minified<const LENGTH: usize>(source: &str, joints: &str) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    minify(source, joints, Some(&mut bytes));
    bytes
}

/// Copies the parts to `target`, one after the other. Returns their length. Without a `target`, only the
/// length is computed.
const fn join(parts: &[&[u8]], mut target: Option<&mut [u8]>) -> usize {
    let (mut part, mut length) = (0, 0);
    while part < parts.len() {
        let mut at = 0;
        while at < parts[part].len() {
            if let Some(target) = &mut target {
                target[length] = parts[part][at];
            }
            length += 1;
            at += 1;
        }
        part += 1;
    }
    length
}

const fn joined<const LENGTH: usize>(parts: &[&[u8]]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    join(parts, Some(&mut bytes));
    bytes
}

const fn text(bytes: &'static [u8]) -> &'static str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("the sources are UTF-8, and no character is split"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::FaultInjection;

    /// See gethostname(2).
    const MAX_HOST_NAME_BYTES: usize = 64;

    fn page(config: &Config) -> String {
        let (faults, metrics) = (Faults::new(config), Metrics::new(1, "1", "develop"));
        Page::new(config, &faults, &metrics).html(&faults.overview(Instant::now()))
    }

    #[test]
    fn the_page_is_at_most_20_kib_with_the_longest_name_of_a_host() {
        let page = page(&Config {
            fault_injection: FaultInjection::All,
            ..Config::default()
        });
        let host = rustix::system::uname().nodename().count_bytes();
        let length = page.len() + 2 * (MAX_HOST_NAME_BYTES - host);
        assert!(length <= 20 * 1024, "{length} bytes");
    }

    #[test]
    fn minifying_leaves_out_characters_without_an_effect() {
        let minified = |source: &str, joints| {
            let mut bytes = vec![0; source.len()];
            let length = minify(source, joints, Some(&mut bytes));
            assert_eq!(minify(source, joints, None), length);
            bytes.truncate(length);
            String::from_utf8(bytes).unwrap()
        };
        for (source, expected) in [
            ("", ""),
            (
                "// one\n\nconst a = const_b;\n  // two\n  a()\n",
                "let a=const_b;a()\n",
            ),
            ("if (a) {\n  return b;\n}\nc", "if(a){return b}c"),
            (
                "a = 'b + // c' + \"d  e\" + `f ${ g }`",
                "a='b + // c'+\"d  e\"+`f ${ g }`",
            ),
            ("a.match(/ ' \\w /, b)", "a.match(/ ' \\w /,b)"),
            ("a + +b - -c / d", "a+ +b- -c/d"),
            ("const a", "let a"),
            ("aconst b", "aconst b"),
            ("a\n// b", "a\n"),
            ("a\n  b  c", "a\nb c"),
            ("}", "}"),
            (SCRIPT_SOURCE, SCRIPT),
        ] {
            assert_eq!(minified(source, SCRIPT_JOINTS), expected);
        }
        for (source, expected) in [
            (
                "a b,\n.c {\n  d: e -1px;\n  f: calc(1px + 2px);\n}\n",
                "a b,.c{d:e -1px;f:calc(1px + 2px)}",
            ),
            ("@media (a: b) {\n  c > d {\n}", "@media (a:b){c > d{}"),
            (STYLE_SOURCE, STYLE),
        ] {
            assert_eq!(minified(source, STYLE_JOINTS), expected);
        }
        // A space before a colon is left out, but in a selector it would have a meaning.
        assert!(!STYLE_SOURCE.contains(" :"));
    }

    /// The policy blocks handlers and styles in attributes, so the markup must have none.
    #[test]
    fn the_policy_names_the_script_and_the_style_that_are_on_the_page() {
        let page = page(&Config::default());
        let policy = FIELDS[0].1;
        for (tag, directive) in [("script", "script-src"), ("style", "style-src")] {
            let (_, rest) = page.split_once(&format!("<{tag}>")).unwrap();
            let (content, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
            assert!(!rest.contains(&format!("<{tag}")), "one {tag}");
            let hash = base64(sha256(content.as_bytes()));
            let hash = str::from_utf8(&hash).unwrap();
            let directive = format!("; {directive} 'sha256-{hash}'");
            assert!(
                policy.contains(&directive),
                "{directive} is not in {policy}"
            );
        }
        let markup = include_str!("page/index.html");
        for attribute in [" style=", " onclick=", " onload=", "javascript:"] {
            assert!(!markup.contains(attribute), "{attribute}");
        }
    }

    #[test]
    fn the_page_offers_every_failure_that_the_server_can_send() {
        let page = page(&Config::default());
        let options = "as set<option>200<option>400<option>401<option>403<option>404<option>408<option>429<option>500\
                       <option>502<option>503<option>504<option>reset<option>close<option>cut<option>stall<option>hang<";
        assert!(page.contains(options), "{page}");
    }

    #[test]
    fn the_version_and_config_labels_are_escaped() {
        let page = page(&Config {
            app_version: "<script>&\"".into(),
            app_config: "</b>".into(),
            ..Config::default()
        });
        assert!(
            page.contains("version &lt;script&gt;&amp;&quot;,"),
            "{page}"
        );
        assert!(page.contains("config &lt;/b&gt;<"), "{page}");
    }
}
