// Package policy decides whether mail is taken. It promises that nothing is taken for a domain that is not
// configured, that postmaster is always reached, and that a recipient is refused for good only on the word of lists
// that name everyone and are fresh, of the primary itself, or of the operator. Who is not known is deferred.
//
// What it knows of recipients comes from three places (hearing.decide weighs them):
//
//   - lists: files of the operator, read at a reload (list.go, formats.go)
//   - sources: lists that are fetched from elsewhere (source.go; http.go, command.go, ldap.go, sql.go), each with a last
//     good copy on disk (lastgood.go) and a guard against sudden losses (content.go); or databases that are asked
//   - the primaries: their replies to RCPT, of traffic and of callouts (learned.go, callout.go, remember.go)
//
// Admit (admit.go) is asked first: whether the domain is ours, whether the client and the sender stay within their limits
// (limits.go), and who judges: the primary, if it takes mail now, or we. Heard (heard.go) learns from what the primary says
// of a recipient, and doubts one that came back without its users. Shadow and Settled (shadow.go) hold our verdicts against
// the primary's.
//
// Mail that we keep is judged (judge.go): Sender finds what the envelope and the DNS say (client.go, sender.go), Recipient
// decides by it for one domain, suspicious clients come back (greylist.go), and Content adds what mailauth and the filters
// find. What a finding weighs, and what a score leads to, are pure tables (weights.go, judgeconfig.go). Clean and the edits
// of a header are in edit.go. Trouble of the DNS never refuses for good.
//
// Lists are one immutable state behind an atomic pointer: whatever changes builds the next state aside and swaps it in,
// so that no decision waits for a list and each sees one state whole. Run owns all goroutines: one for each source that
// is being read (at most maxLooks), one for each callout (at most maxCallouts), maxShadows that judge beside the primary,
// one that tests the DNS lists, and one that keeps what was learned. A judgement starts some for its questions, and awaits
// them.
package policy
