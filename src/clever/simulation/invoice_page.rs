//! An invoice as a page that can be printed. It needs nothing but itself.

use std::fmt::Write as _;

use crate::clever::simulation::invoice::InvoiceHead;
use crate::platform::billing::{Charge, Invoice, InvoiceLine, LineKind, Unit};
use crate::platform::credit::Euro;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111}\
h1{font-size:1.6em;margin-bottom:.2em}p{margin:.2em 0}table{border-collapse:collapse;width:100%;margin-top:1.5em}\
th,td{text-align:left;padding:.35em .6em;border-bottom:1px solid #ccc;vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tfoot td{font-weight:600}\
.draft{border:1px solid #c60;color:#c60;padding:.3em .6em;display:inline-block;margin-top:.6em}\
@media print{body{margin:0;max-width:none}thead{display:table-header-group}tr{break-inside:avoid}}";

/// Text within an element or an attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No character of HTML.
            c if c.is_control() && !c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

fn what(line: &InvoiceLine) -> String {
    match line.kind {
        LineKind::ControlPlane => String::from("Control plane"),
        LineKind::NodeGroup => {
            let name = line.node_group_name.as_deref().unwrap_or("?");
            let flavor = line.flavor.map(|flavor| format!(" ({flavor})"));
            format!("Node group {}{}", escaped(name), flavor.unwrap_or_default())
        }
        LineKind::LoadBalancers => String::from("Load balancers"),
        LineKind::Storage => String::from("Persistent storage"),
    }
}

fn unit(charge: &Charge) -> &'static str {
    match charge.unit {
        Unit::Vcpu => "vCPU hours",
        Unit::RamGb => "GB hours of memory",
        Unit::LoadBalancer => "load balancer hours",
        Unit::StorageGb => "GB hours of storage",
    }
}

pub fn page(organisation: &str, head: &InvoiceHead, invoice: &Invoice) -> String {
    let mut rows = String::new();
    for line in &invoice.lines {
        let count = line.charges.len();
        for (index, charge) in line.charges.iter().enumerate() {
            let first = index == 0;
            let name = if first {
                escaped(&line.cluster_name)
            } else {
                String::new()
            };
            let what = if first { what(line) } else { String::new() };
            let since = line.since.to_rfc3339();
            let period = if first { &since[..10] } else { "" };
            // The line's own amount, of its charges together, stands beside the last of them.
            let amount = if index + 1 == count {
                line.amount.shown(2).to_string()
            } else {
                String::new()
            };
            // Writing into a string cannot fail.
            let _ = write!(
                rows,
                "<tr><td>{name}</td><td>{what}</td><td>{period}</td><td class=\"n\">{}</td><td>{}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{amount}</td></tr>\n",
                charge.unit_hours,
                unit(charge),
                charge.monthly_rate,
                charge.amount.shown(6),
            );
        }
    }
    if invoice.lines.is_empty() {
        rows.push_str("<tr><td colspan=\"8\">Nothing was used.</td></tr>\n");
    }
    let euro = |amount: Euro| String::from(amount);
    let foot = |label: &str, amount: String| {
        format!("<tr><td colspan=\"7\">{label}</td><td class=\"n\">{amount}</td></tr>\n")
    };
    let mut totals = foot("Total, without taxes", invoice.total.shown(2).to_string());
    if head.credits_used != Euro(0) {
        totals += &foot("Credits", format!("-{}", euro(head.credits_used)));
    }
    totals += &foot("To be paid", euro(head.due));
    let draft = match head.is_final {
        true => "",
        false => "<p class=\"draft\">The month is not over: this is what it comes to so far.</p>\n",
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Invoice {month}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>Invoice {month}</h1>\n\
         <p>{organisation} ({owner})</p>\n<p>{since} to {until}, all amounts in {currency} without taxes. \
         A month of prices has 720 hours.</p>\n{draft}<table>\n<thead><tr><th>Cluster</th><th></th><th>Since</th>\
         <th class=\"n\">Used</th><th></th><th class=\"n\">Monthly rate</th><th class=\"n\">Before rounding</th>\
         <th class=\"n\">Amount</th></tr></thead>\n<tbody>\n{rows}</tbody>\n<tfoot>\n{totals}</tfoot>\n</table>\n\
         </body>\n</html>\n",
        month = escaped(&head.month),
        organisation = escaped(organisation),
        owner = escaped(head.owner_id.as_str()),
        since = escaped(&head.since),
        until = escaped(&head.until),
        currency = head.currency,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn names_are_text() {
        let head = InvoiceHead {
            owner_id: "orga_3547a882-e464-4c34-8168-add4b3e0c135".parse().unwrap(),
            month: String::from("2026-01"),
            since: Timestamp(0).to_rfc3339(),
            until: Timestamp(0).to_rfc3339(),
            is_final: false,
            currency: "EUR",
            taxes_included: false,
            credits_used: Euro(1250),
            due: Euro(0),
            credits_left: Euro(5),
        };
        let line = InvoiceLine {
            kind: LineKind::ControlPlane,
            cluster_id: "kubernetes_01KTREHTR6E4JEY46EPYBKY8XG".parse().unwrap(),
            cluster_name: String::from("<script>alert('&')</script>\u{0}"),
            node_group_id: None,
            node_group_name: None,
            flavor: None,
            since: Timestamp(0),
            until: Timestamp(1),
            charges: vec![Charge {
                unit: Unit::Vcpu,
                unit_ms: 1.into(),
                unit_hours: 1.into(),
                monthly_rate: crate::platform::rates::Rate::euro(2),
                amount: Default::default(),
            }],
            amount: Default::default(),
        };
        let invoice = Invoice {
            lines: vec![line],
            total: Default::default(),
        };
        let page = page("A & B <C>", &head, &invoice);
        assert!(
            page.contains("&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;</td>"),
            "{page}"
        );
        assert!(page.contains("A &amp; B &lt;C&gt;"));
        assert!(page.contains("not over") && page.contains("-12.50"));
        assert!(!page.contains("<script"));
    }
}
