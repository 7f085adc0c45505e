//! Fills in the activation page as a person in a browser without JavaScript would: the page's own form, its own hidden
//! fields. `xtask` includes this file too, so it needs nothing but std.

/// A form as it stands in a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Where it goes to, as written: may be relative, or empty for the page itself.
    pub action: String,
    pub fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    /// `hidden`, `text`, `password`, `submit`, … in lower case.
    pub kind: String,
    pub value: String,
}

impl Form {
    /// The first form of a page that sends something by POST.
    pub fn parse(html: &str) -> Option<Self> {
        let form = html.split("<form").skip(1).find(|form| {
            let tag = form.split('>').next().unwrap_or_default();
            attribute(tag, "method").is_some_and(|method| method.eq_ignore_ascii_case("post"))
        })?;
        let body = form.split("</form").next().unwrap_or(form);
        let (tag, body) = body.split_once('>')?;
        let fields = body.split('<').filter_map(field).collect();
        Some(Self { action: attribute(tag, "action").unwrap_or_default(), fields })
    }

    /// The body to send: hidden fields as they are, the user's code and the one-time code where they belong, and the button
    /// that agrees, if buttons have names.
    pub fn fill(&self, user_code: &str, owner_code: &str) -> Vec<(String, String)> {
        let button = self.fields.iter().find(|field| field.kind == "submit" && !field.name.is_empty() && !refuses(field));
        let typed = self.fields.iter().filter(|field| field.kind != "submit" && !field.name.is_empty()).map(|field| {
            let value = match field.name.as_str() {
                name if name.contains("user_code") => user_code,
                _ if field.kind == "hidden" => &field.value,
                name if name.contains("code") || name.contains("otp") => owner_code,
                _ => &field.value,
            };
            (field.name.clone(), value.to_owned())
        });
        typed.chain(button.map(|button| (button.name.clone(), button.value.clone()))).collect()
    }
}

/// `application/x-www-form-urlencoded`
pub fn urlencoded(fields: &[(String, String)]) -> String {
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", percent(name), percent(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn percent(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn refuses(button: &Field) -> bool {
    let value = button.value.to_ascii_lowercase();
    ["deny", "cancel", "refuse", "reject", "no"].contains(&value.as_str())
}

fn field(tag: &str) -> Option<Field> {
    let (tag, _) = tag.split_once('>')?;
    let kind = match tag.split(|c: char| c.is_whitespace()).next()? {
        "input" => attribute(tag, "type").unwrap_or_else(|| "text".to_owned()),
        "button" => attribute(tag, "type").unwrap_or_else(|| "submit".to_owned()),
        _ => return None,
    };
    let value = attribute(tag, "value").unwrap_or_default();
    Some(Field { name: attribute(tag, "name").unwrap_or_default(), kind: kind.to_ascii_lowercase(), value })
}

/// The value of an attribute in a tag, quoted in either way, its entities resolved.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let mut rest = tag;
    loop {
        let at = rest.find(name)?;
        let before = rest[..at].chars().next_back();
        let after = rest[at + name.len()..].trim_start();
        if before.is_some_and(char::is_whitespace)
            && let Some(value) = after.strip_prefix('=')
        {
            let value = value.trim_start();
            let raw = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value[1..].split(quote).next()?,
                _ => value.split(|c: char| c.is_whitespace() || c == '/').next()?,
            };
            return Some(entities(raw));
        }
        rest = &rest[at + name.len()..];
    }
}

fn entities(text: &str) -> String {
    let named =
        [("&quot;", "\""), ("&#39;", "'"), ("&#x27;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&#x2F;", "/"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (entity, plain)| text.replace(entity, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<!doctype html><form method="get" action="/search"><input name=q></form>
        <form method="post" action="/activate?a=1&amp;b=2"><input type="hidden" name="csrf" value="t&quot;k">
        <label>Code <input name="user_code" value=""></label><input type='password' name='owner_code' required>
        <button name="decision" value="deny">No</button><button name="decision" value="approve">Yes</button></form>"#;

    #[test]
    fn the_form_that_posts_is_found_with_its_fields() {
        let form = Form::parse(PAGE).unwrap();
        assert_eq!(form.action, "/activate?a=1&b=2");
        assert_eq!(form.fields.len(), 5);
    }

    #[test]
    fn it_is_filled_in_as_a_person_would() {
        let body = urlencoded(&Form::parse(PAGE).unwrap().fill("ABCD-1234", "0 9"));
        assert_eq!(body, "csrf=t%22k&user_code=ABCD-1234&owner_code=0%209&decision=approve");
    }

    #[test]
    fn a_page_without_a_form_has_none() {
        assert_eq!(Form::parse("<p>Done. You can close this window.</p>"), None);
    }
}
