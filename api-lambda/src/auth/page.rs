//! The activation page's HTML. No script, no external resource, one style sheet that the content security policy knows by its hash.

use std::fmt::Write as _;

use crate::auth::keys;

const CSS: &str = "\
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1c2430;--soft:#5b6675;--line:#d5dae1;--accent:#1756c4;--on:#fff;--bad:#b3261e}\
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--text:#e8ecf2;--soft:#a3aebd;--line:#364050;--accent:#8ab4ff;--on:#0c1a33;--bad:#ff9d94}}\
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif;padding:1rem}\
main{width:100%;max-width:27rem;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:2rem}\
h1{font-size:1.35rem;margin:0 0 .5rem}p,ul{color:var(--soft);margin:.5rem 0 1rem}ul{padding-left:1.2rem}label{display:block;font-weight:600;margin-top:1rem}\
input{width:100%;margin-top:.35rem;padding:.65rem .75rem;font:1.15rem ui-monospace,monospace;letter-spacing:.08em;text-transform:uppercase;color:inherit;background:var(--bg);border:1px solid var(--line);border-radius:8px}\
.actions{display:flex;gap:.75rem;margin-top:1.5rem}button{flex:1;padding:.7rem;font:inherit;font-weight:600;border-radius:8px;border:1px solid var(--line);background:transparent;color:inherit;cursor:pointer}\
button.main{background:var(--accent);border-color:var(--accent);color:var(--on)}:focus-visible{outline:3px solid var(--accent);outline-offset:2px}\
.error{color:var(--bad);border:1px solid var(--bad);border-radius:8px;padding:.6rem .75rem}";

/// `Content-Security-Policy` of a page whose forms come back to us.
pub(crate) fn policy() -> String {
    policy_with("'self'")
}

/// The same, with forms that go to `form_action`.
pub(crate) fn policy_with(form_action: &str) -> String {
    let hash = keys::sha256_base64(CSS.as_bytes());
    format!("default-src 'none'; style-src 'sha256-{hash}'; form-action {form_action}; frame-ancestors 'none'; base-uri 'none'")
}

pub(crate) struct Form<'a> {
    pub user_code: &'a str,
    pub csrf: &'a str,
    pub owner: &'a str,
    pub error: Option<&'a str>,
}

pub(crate) fn form(form: &Form<'_>) -> String {
    let mut body = String::from("<h1>Log in a device</h1>");
    if let Some(error) = form.error {
        let _ = write!(body, "<p class=\"error\" role=\"alert\">{}</p>", escape(error));
    }
    let _ = write!(
        body,
        "<p>A program asks to act for <strong>{owner}</strong>. Approve only if you started it, and if the code below is the one that it shows. It may then:</p>\
<ul><li>start, read, cancel and retry jobs</li><li>read their logs and results</li><li>store git credentials and secrets, whose values nobody can read back</li></ul>\
<form method=\"post\" action=\"activate\" autocomplete=\"off\"><input type=\"hidden\" name=\"csrf\" value=\"{csrf}\">\
<label for=\"user_code\">Code shown by the program</label>\
<input id=\"user_code\" name=\"user_code\" value=\"{code}\" placeholder=\"ABCD-1234\" maxlength=\"20\" required spellcheck=\"false\">\
<label for=\"owner_code\">One-time code printed by <code>ckrv serve</code></label>\
<input id=\"owner_code\" name=\"owner_code\" maxlength=\"30\" spellcheck=\"false\" aria-describedby=\"owner_help\">\
<p id=\"owner_help\">It proves that you are this server's owner. To deny you don't need it.</p>\
<div class=\"actions\"><button class=\"main\" name=\"action\" value=\"approve\">Approve</button><button name=\"action\" value=\"deny\">Deny</button></div></form>",
        owner = escape(form.owner),
        csrf = escape(form.csrf),
        code = escape(form.user_code),
    );
    whole("Log in a device", &body)
}

/// The page where people sign in: the code, and a button for each identity provider.
pub(crate) fn sign_in(code: &str, csrf: &str, buttons: &[(&str, &str)]) -> String {
    let mut body = format!(
        "<h1>Log in a device</h1><p>A program asks to act for you. Go on only if you started it, and if the code below is the one that it shows.</p>\
<form method=\"post\" action=\"activate/oidc/start\" autocomplete=\"off\"><input type=\"hidden\" name=\"csrf\" value=\"{}\">\
<label for=\"user_code\">Code shown by the program</label>\
<input id=\"user_code\" name=\"user_code\" value=\"{}\" placeholder=\"ABCD-1234\" maxlength=\"20\" required spellcheck=\"false\">",
        escape(csrf),
        escape(code),
    );
    for (name, label) in buttons {
        let _ = write!(
            body,
            "<div class=\"actions\"><button class=\"main\" name=\"issuer\" value=\"{}\">Sign in with {}</button></div>",
            escape(name),
            escape(label)
        );
    }
    body.push_str("</form>");
    whole("Log in a device", &body)
}

/// What somebody who signed in is asked.
pub(crate) struct Question<'a> {
    pub client: &'a str,
    pub code: &'a str,
    pub name: &'a str,
    pub email: &'a str,
    pub provider: &'a str,
    pub csrf: &'a str,
}

pub(crate) fn confirm(question: &Question<'_>) -> String {
    let body = format!(
        "<h1>Log in a device?</h1><p>The program <strong>{client}</strong>, which shows the code <strong>{code}</strong>, asks to act for</p>\
<p><strong>{name}</strong><br>{email} ({provider})</p>\
<p>Approve only if you started it, and if it shows this very code. It may then:</p>\
<ul><li>start, read, cancel and retry your jobs</li><li>read their logs and results</li><li>store git credentials and secrets, whose values nobody can read back</li></ul>\
<form method=\"post\" action=\"confirm\"><input type=\"hidden\" name=\"csrf\" value=\"{csrf}\">\
<div class=\"actions\"><button class=\"main\" name=\"action\" value=\"approve\">Approve</button><button name=\"action\" value=\"deny\">Deny</button></div></form>",
        client = escape(question.client),
        code = escape(question.code),
        name = escape(question.name),
        email = escape(question.email),
        provider = escape(question.provider),
        csrf = escape(question.csrf),
    );
    whole("Log in a device?", &body)
}

pub(crate) fn message(title: &str, text: &str) -> String {
    whole(title, &format!("<h1>{}</h1><p role=\"status\">{}</p>", escape(title), escape(text)))
}

/// The state of the service's parts, each with its name.
pub(crate) fn status(is_ready: bool, checks: &[(&str, &str)]) -> String {
    let title = if is_ready { "All is well" } else { "Something is down" };
    let mut body = format!("<h1>{title}</h1><ul>");
    for (name, state) in checks {
        let class = if *state == "ok" { "" } else { " class=\"error\"" };
        let _ = write!(body, "<li{class}>{}: <strong>{}</strong></li>", escape(name), escape(state));
    }
    body.push_str("</ul><p>Why a part is down is in the service's log.</p>");
    whole(title, &body)
}

fn whole(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>{} - ckrv</title><style>{CSS}</style></head><body><main>{body}</main></body></html>",
        escape(title)
    )
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_came_from_outside_is_escaped() {
        let html = super::form(&super::Form { user_code: "\"><script>x</script>", csrf: "c", owner: "<b>", error: Some("<i>'") });
        assert!(!html.contains("<script") && !html.contains("<b>") && !html.contains("<i>"), "{html}");
        assert!(html.contains("&quot;&gt;&lt;script&gt;"));
    }
}
