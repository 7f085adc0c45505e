use super::*;

fn read(text: &str) -> Result<Tiers, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
}

#[test]
fn tiers_are_read_and_those_left_out_are_the_reference_ones() {
    let text =
        "free = { included = 3, overage = 'blocked' }\npro = { included = 5, overage = { up_to = 2, usd_per_job = 0.25 } }";
    let tiers = read(text).unwrap();
    assert_eq!(tiers.free, TierRule { included: 3, overage: Overage::Blocked });
    assert_eq!(tiers.pro, TierRule { included: 5, overage: Overage::UpTo { jobs: 2, usd_per_job: 0.25 } });
    assert_eq!(tiers.enterprise, Tiers::default().enterprise);
    assert_eq!((tiers.free.cap(), tiers.pro.cap(), tiers.enterprise.cap()), (Some(3), Some(7), None));
    let unlimited = read("[pro]\nincluded = 0\noverage = { usd_per_job = 1 }").unwrap().pro;
    assert_eq!(unlimited, TierRule { included: 0, overage: Overage::Unlimited { usd_per_job: 1.0 } });
}

#[test]
fn tiers_that_make_no_sense_are_refused() {
    for (overage, reason) in [
        ("'open'", "`open` is no overage"),
        ("{ usd_per_job = -1 }", "`usd_per_job` must be 0 to 10000"),
        ("{ usd_per_job = nan }", "`usd_per_job` must be 0 to 10000"),
        ("{ up_to = 0, usd_per_job = 1 }", "say overage = \"blocked\""),
        ("{ up_to = 5 }", "`overage` is \"blocked\""),
        ("{ usd_per_job = 1, upto = 5 }", "`overage` is \"blocked\""),
        ("7", "`overage` is \"blocked\""),
    ] {
        let error = read(&format!("[pro]\nincluded = 1\noverage = {overage}")).unwrap_err();
        assert!(error.contains(reason), "{overage}: {error}");
    }
    assert!(read("[pro]\noverage = 'blocked'").unwrap_err().contains("included"));
    assert!(read("[pro]\nincluded = -1\noverage = 'blocked'").is_err());
    assert!(read("[gold]\nincluded = 1\noverage = 'blocked'").unwrap_err().contains("gold"));
}

#[test]
fn months_end_where_the_next_begins() {
    let month = |text: &str| month_of(text.parse().unwrap());
    assert_eq!(month("2026-12-31T23:59:59Z"), ("2026-12".to_owned(), "2027-01-01T00:00:00Z".parse().unwrap()));
    assert_eq!(month("2026-02-01T00:00:00Z"), ("2026-02".to_owned(), "2026-03-01T00:00:00Z".parse().unwrap()));
}
