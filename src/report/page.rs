//! The frame of a report: head, style sheet and script, all in one file.

use maud::{DOCTYPE, Markup, PreEscaped, Render, html};

/// A complete document. The script only adds the values under the pointer; the page is complete without it.
pub fn page(title: &str, body: &Markup) -> String {
    let (style, script) = (include_str!("page.css"), include_str!("page.js"));
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(style)) }
            }
            body {
                main { (body) }
                script { (PreEscaped(script)) }
            }
        }
    };
    document.into_string()
}

/// A section with its heading and a lead.
pub fn section(heading: &str, lead: impl Render, body: &Markup) -> Markup {
    html! {
        section {
            h2 { (heading) }
            p.lead { (lead) }
            (body)
        }
    }
}

/// Names and values.
pub fn facts(facts: &[(String, String)]) -> Markup {
    html! {
        dl.facts {
            @for (name, value) in facts {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}
