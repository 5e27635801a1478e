//! The frame of a page: head, navigation, footer.

use maud::{DOCTYPE, Markup, html};

/// The script of the pages: values under the pointer.
pub const SCRIPT: &str = include_str!("../report/page.js");

/// The icon of the pages.
pub const ICON: &str = include_str!("icon.svg");

/// The style sheet of the pages: that of the reports, and its own rules.
pub fn style_sheet() -> &'static str {
    concat!(include_str!("../report/page.css"), include_str!("style.css"))
}

/// Seconds after which the overview loads again.
const REFRESH_SECONDS: u32 = 15;

/// A page of the sidecar.
pub struct Frame<'a> {
    /// Title of the window.
    pub title: &'a str,
    /// The relative path to the root of the pages.
    pub root: &'static str,
    /// True if the page loads again after [`REFRESH_SECONDS`].
    pub is_refreshed: bool,
}

impl Frame<'_> {
    /// The document with this body.
    pub fn document(&self, body: &Markup) -> String {
        let root = self.root;
        let document = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    @if self.is_refreshed { meta http-equiv="refresh" content=(REFRESH_SECONDS); }
                    title { (self.title) " · promforest" }
                    link rel="icon" href={ (root) "static/icon.svg" };
                    link rel="stylesheet" href={ (root) "static/style.css" };
                    script src={ (root) "static/page.js" } defer {}
                }
                body.live {
                    nav {
                        a.home href=(if root.is_empty() { "./" } else { root }) { "promforest" }
                        @for page in ["status", "config", "flags", "metrics"] {
                            a href={ (root) (page) } { (page) }
                        }
                    }
                    main { (body) }
                }
            }
        };
        document.into_string()
    }
}
