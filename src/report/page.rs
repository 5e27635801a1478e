//! The frame of a report: head, style sheet and script, all in one file.

use super::text::escape;

/// A complete document. The title is any text; the body is HTML.
///
/// The script only adds the values under the pointer; the page is complete without it.
pub fn page(title: &str, body: &str) -> String {
    let (style, script) = (include_str!("page.css"), include_str!("page.js"));
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
         <style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n<script>\n{script}</script>\n\
         </body>\n</html>\n"
    )
}

/// A section with its heading and a lead in HTML.
pub fn section(heading: &str, lead: &str, body: &str) -> String {
    format!("<section>\n<h2>{heading}</h2>\n<p class=\"lead\">{lead}</p>\n{body}</section>\n")
}
