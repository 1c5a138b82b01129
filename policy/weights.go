package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"understudy/internal/mta"
)

// defaultFindings say what each finding of ours weighs, and what it asks for by itself, where no configuration says
// otherwise. Those of mailauth and of filters come with their own.
var defaultFindings = map[string]mta.Finding{
	"client:early": {Weight: 5, Text: "the client talked before it was greeted"},

	"rdns:none":        {Weight: 1, Text: "the client's address has no reverse name"},
	"rdns:unconfirmed": {Weight: 1, Text: "the client's reverse name does not lead back to its address"},
	"rdns:dynamic":     {Weight: 1, Text: "the client's reverse name looks like a dial-up's"},

	"helo:not-fqdn":        {Weight: 1, Text: "the HELO name is not a full name"},
	"helo:syntax":          {Weight: 1, Text: "the HELO name is not a host name"},
	"helo:bare-address":    {Weight: 2, Text: "the HELO name is an address without brackets"},
	"helo:foreign-address": {Weight: 3, Text: "the HELO name is another host's address"},
	"helo:our-name":        {Weight: 8, Text: "the HELO name is ours"},
	"helo:our-domain":      {Weight: 5, Text: "the HELO name is a domain of ours, and does not lead to the client"},
	"helo:planted-address": {Weight: 8, Text: "the HELO name holds what another server would take for an address"},

	"sender:no-domain":  {Action: mta.Reject, Status: "1.8", Text: "the domain of the reverse-path can't receive mail: it has neither MX nor address"},
	"sender:null-mx":    {Action: mta.Reject, Status: "7.27", Text: "the domain of the reverse-path takes no mail (null MX)"},
	"sender:unresolved": {Action: mta.Defer, Status: "1.8", Text: "the DNS does not tell now whether the domain of the reverse-path exists"},
	"sender:literal":    {Weight: 2, Text: "the reverse-path has an address in place of a domain"},

	"spoof:own-domain": {Action: mta.Reject, Status: "7.1", Text: "mail from this domain is taken from its own servers only"},
	"spoof:unverified": {Action: mta.Defer, Status: "7.24", Text: "the DNS does not tell now which servers send for this domain"},
}

// otherFindings are those that come with weights of their own, from mailauth.
var otherFindings = []string{
	"spf:fail", "spf:softfail", "spf:permerror", "spf-helo:fail", "dkim:fail", "dmarc:reject", "dmarc:quarantine", "dmarc:none-fail",
}

// openKinds are the kinds of findings whose names depend on the configuration, on filters, or on the message.
var openKinds = []string{"dnsbl:", "dnswl:", "header:", "rspamd:", "milter:", "spamd:", "clamd:"}

// stageOf is the stage that a finding is of, by what stands before its colon.
var stageOf = map[string]string{
	"client:": stageClient, "rdns:": stageClient, "helo:": stageClient,
	"dnsbl:": stageLists, "dnswl:": stageLists,
	"spf:": stageSender, "spf-helo:": stageSender, "sender:": stageSender, "spoof:": stageSender,
	"header:": stageContent, "dkim:": stageContent, "dmarc:": stageContent,
}

// kindOf is what stands before the colon of a finding's name, with it.
func kindOf(name string) string {
	kind, _, ok := strings.Cut(name, ":")
	if !ok {
		return ""
	}
	return kind + ":"
}

// find makes a finding with its defaults; detail is for operators.
func find(name, detail string) mta.Finding {
	f := defaultFindings[name]
	f.Name, f.Detail = name, detail
	return f
}

// checkWeight says what is wrong with a weight of the configuration, "" if nothing is.
func checkWeight(name string, w float64) string {
	if math.Abs(w) > maxScore {
		return fmt.Sprintf("%g is not between -%d and %d", w, maxScore, maxScore)
	}
	kind := kindOf(name)
	if kind == "filter:" {
		return "what becomes of mail that a filter did not see is said by accept_and_mark and the filter's on_failure"
	}
	if slices.Contains(openKinds, kind) {
		return ""
	}
	if _, ok := defaultFindings[name]; ok || slices.Contains(otherFindings, name) {
		return ""
	}
	if name == kind && stageOf[kind] != "" {
		return ""
	}
	var same []string
	for _, known := range slices.AppendSeq(slices.Clone(otherFindings), maps.Keys(defaultFindings)) {
		if kindOf(known) == kind {
			same = append(same, known)
		}
	}
	if kind == "" || len(same) == 0 {
		kinds := append(slices.Sorted(maps.Keys(stageOf)), "rspamd:", "milter:", "spamd:", "clamd:")
		return fmt.Sprintf("no finding is called %q: names begin with %s", name, strings.Join(kinds, ", "))
	}
	slices.Sort(same)
	return fmt.Sprintf("no finding is called %q: known are %s", name, strings.Join(same, ", "))
}

// weigh gives the findings that count under these rules, as they count, in their order.
func (r *rules) weigh(findings []mta.Finding) []mta.Finding {
	var counted []mta.Finding
	for _, f := range findings {
		if stage, ok := stageOf[kindOf(f.Name)]; ok && !r.stages[stage] {
			continue
		}
		if w, ok := r.weight(f.Name); ok {
			f.Weight, f.Action = w, mta.Accept
		}
		counted = append(counted, f)
	}
	return counted
}

// weight is the configured weight of a finding.
func (r *rules) weight(name string) (float64, bool) {
	kind := kindOf(name)
	if kind == "filter:" {
		return 0, false
	}
	if w, ok := r.Weights[name]; ok {
		return w, true
	}
	w, ok := r.Weights[kind]
	return w, ok
}

// score is the sum of the weights, to a thousandth, so that ten tenths are one.
func score(findings []mta.Finding) float64 {
	sum := 0.0
	for _, f := range findings {
		sum += f.Weight
	}
	return math.Round(sum*1000) / 1000
}

// reached is what a score asks for.
func (r *rules) reached(score float64) mta.Action {
	for _, t := range []struct {
		from   float64
		action mta.Action
	}{{r.Reject, mta.Reject}, {r.Defer, mta.Defer}, {r.Quarantine, mta.Quarantine}, {r.Mark, mta.Mark}} {
		if t.from > 0 && score >= t.from {
			return t.action
		}
	}
	return mta.Accept
}

// asked is the most that a finding asks for by itself.
func asked(findings []mta.Finding) mta.Action {
	most := mta.Accept
	for _, f := range findings {
		most = max(most, f.Action)
	}
	return most
}
