package policy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"understudy/internal/dnsbl"
	"understudy/internal/filter"
	"understudy/internal/mta"
)

// The stages of the judgement, in their order.
const (
	stageClient   = "client"   // the client's reverse name, its HELO, whether it talked too early
	stageLists    = "lists"    // DNS lists of clients
	stageSender   = "sender"   // the reverse-path: its domain, SPF, whether it is one of ours
	stageGreylist = "greylist" // suspicious clients must come back
	stageContent  = "content"  // DKIM, DMARC, the header
	stageFilters  = "filters"  // rspamd, milters, spamd, clamd
)

var stageNames = []string{stageClient, stageLists, stageSender, stageGreylist, stageContent, stageFilters}

// Judge is how mail is judged that we take in the primary's place.
type Judge struct {
	// DNSLists are lists of clients, as postscreen's postscreen_dnsbl_sites: LIST, LIST=PATTERN, LIST*WEIGHT. A weight
	// below 0 speaks for a client. They want a recursive resolver of your own.
	DNSLists []string `yaml:"dns_lists"`
	// DNSListNames are the names that senders, the primary and the log see in place of a list's own, for those whose name
	// holds a secret key.
	DNSListNames map[string]string `yaml:"dns_list_names"`
	// DNSListsWait is how long the answers of all lists together are awaited; who has not answered has no opinion.
	DNSListsWait time.Duration `yaml:"dns_lists_wait"`

	Rules `yaml:",inline"`

	// Greylist has clients that look suspicious come back.
	Greylist Greylist `yaml:"greylist"`
}

// Rules say what is looked at, how much each finding weighs, and from which score on what is done. A domain may have
// its own.
type Rules struct {
	// Stages are what is looked at: client, lists, sender, greylist, content, filters. Of a domain: none means those of
	// policy.judge.
	Stages []string `yaml:"stages"`
	// Filters names the filters of policy.filters that judge the content. None: all of them.
	Filters []string `yaml:"filters"`
	// Weights by the name of a finding, or by the part before its colon, with it, for all of that kind: "spf:fail": 6,
	// "dnsbl:": 4. A weight here is all that the finding then does: it no longer refuses or defers by itself. Of a
	// domain: they go before those of policy.judge.
	Weights map[string]float64 `yaml:"weights"`
	// The scores from which on a message is marked in its header, held for an operator, deferred (451), or refused
	// (550). Below 0: never. Of a domain: 0 means that of policy.judge.
	Mark       float64 `yaml:"mark"`
	Quarantine float64 `yaml:"quarantine"`
	Defer      float64 `yaml:"defer"`
	Reject     float64 `yaml:"reject"`
	// AcceptAndMark takes and marks what a filter did not answer about, in place of 451. Never for virus scanners.
	AcceptAndMark bool `yaml:"accept_and_mark"`
}

// Greylist says which clients must come back, and when.
type Greylist struct {
	// Above is the score from which on a client is suspicious; one without a confirmed reverse name, or with one that
	// looks like a dial-up's, always is. Others are never greylisted.
	Above float64 `yaml:"above"`
	// Wait is how soon a second try is too soon.
	Wait time.Duration `yaml:"wait"`
	// Pass is how long a client's network that came back is let through.
	Pass time.Duration `yaml:"pass"`
	// MaxEntries bounds the memory, at about 100 octets an entry. 0: no greylist.
	MaxEntries int `yaml:"max_entries"`
}

func defaultJudge() Judge {
	return Judge{
		DNSListsWait: 6 * time.Second, // as postscreen
		Rules:        Rules{Stages: slices.Clone(stageNames), Mark: 3, Quarantine: -1, Defer: -1, Reject: 8},
		Greylist:     Greylist{Above: 2, Wait: 5 * time.Minute, Pass: 36 * 24 * time.Hour, MaxEntries: 100_000},
	}
}

// Validate reports every mistake.
func (j *Judge) Validate() []mta.Fault {
	entries, faults := dnsbl.ParseEntries(j.DNSLists)
	for i := range faults {
		faults[i].Key = "dns_lists" + faults[i].Key
	}
	for _, list := range slices.Sorted(maps.Keys(j.DNSListNames)) {
		key := "dns_list_names." + list
		if !slices.ContainsFunc(entries, func(e dnsbl.Entry) bool { return e.List == list }) {
			faults = append(faults, mta.NewFault(key, "is not among dns_lists: write it as there, in lower case and without pattern and weight"))
		}
		if name := j.DNSListNames[list]; name == "" || plainName(name) != name || strings.Contains(name, ":") {
			faults = append(faults, mta.NewFault(key, "%q is not a name of letters, digits, dots and hyphens", name))
		}
	}
	if j.DNSListsWait < 100*time.Millisecond || j.DNSListsWait > time.Minute {
		faults = append(faults, mta.NewFault("dns_lists_wait", "must be between 100ms and 1m, for example 6s"))
	}
	faults = append(faults, j.Rules.Validate()...)
	for _, t := range []struct {
		key   string
		score float64
	}{{"mark", j.Mark}, {"quarantine", j.Quarantine}, {"defer", j.Defer}, {"reject", j.Reject}} {
		if t.score == 0 {
			faults = append(faults, mta.NewFault(t.key, "0 would be for every message: write a score such as 8, or -1 for never"))
		}
	}
	return append(faults, below("greylist", j.Greylist.Validate())...)
}

// Validate reports every mistake that can be seen without the filters.
func (r *Rules) Validate() []mta.Fault {
	var faults []mta.Fault
	for i, s := range r.Stages {
		switch {
		case !slices.Contains(stageNames, s):
			faults = append(faults, mta.NewFault(index("stages", i), "there is no stage %q: known are %s", s, strings.Join(stageNames, ", ")))
		case slices.Index(r.Stages, s) != i:
			faults = append(faults, mta.NewFault(index("stages", i), "%s is named twice", s))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Weights)) {
		if text := checkWeight(name, r.Weights[name]); text != "" {
			faults = append(faults, mta.NewFault("weights."+name, "%s", text))
		}
	}
	for _, t := range []struct {
		key   string
		score float64
	}{{"mark", r.Mark}, {"quarantine", r.Quarantine}, {"defer", r.Defer}, {"reject", r.Reject}} {
		if math.Abs(t.score) > maxScore {
			faults = append(faults, mta.NewFault(t.key, "%g is more than any message reaches: write at most %d, or -1 for never", t.score, maxScore))
		}
	}
	return faults
}

// maxScore bounds weights and scores to what can be told apart when they are added.
const maxScore = 1000

// Validate reports every mistake.
func (g *Greylist) Validate() []mta.Fault {
	var faults []mta.Fault
	if g.Above <= 0 || g.Above > maxScore {
		faults = append(faults, mta.NewFault("above", "must be above 0 and at most %d", maxScore))
	}
	if g.Wait < time.Second || g.Wait > time.Hour {
		faults = append(faults, mta.NewFault("wait", "must be between 1s and 1h: few senders come back later than that at first"))
	}
	if g.Pass < time.Hour {
		faults = append(faults, mta.NewFault("pass", "must be at least 1h, for example 36d"))
	}
	if g.MaxEntries < 0 || g.MaxEntries > 10_000_000 {
		faults = append(faults, mta.NewFault("max_entries", "%d is not between 0 and 10000000", g.MaxEntries))
	}
	return faults
}

// rules are the Rules of one domain, or of all without their own, completed. They are never changed.
type rules struct {
	Rules
	stages map[string]bool
}

// rulesOf completes a domain's own rules with the general ones.
func rulesOf(own, general Rules) *rules {
	r := own
	if len(r.Stages) == 0 {
		r.Stages = general.Stages
	}
	if len(r.Filters) == 0 {
		r.Filters = general.Filters
	}
	r.Weights = maps.Clone(general.Weights)
	if r.Weights == nil {
		r.Weights = map[string]float64{}
	}
	for name := range own.Weights {
		if strings.HasSuffix(name, ":") { // the domain's word of a kind goes before the general word of one of it
			maps.DeleteFunc(r.Weights, func(k string, _ float64) bool { return strings.HasPrefix(k, name) })
		}
	}
	maps.Copy(r.Weights, own.Weights)
	for _, t := range []struct {
		own     *float64
		general float64
	}{{&r.Mark, general.Mark}, {&r.Quarantine, general.Quarantine}, {&r.Defer, general.Defer}, {&r.Reject, general.Reject}} {
		if *t.own == 0 {
			*t.own = t.general
		}
	}
	r.AcceptAndMark = own.AcceptAndMark || general.AcceptAndMark
	done := &rules{Rules: r, stages: map[string]bool{}}
	for _, s := range r.Stages {
		done.stages[s] = true
	}
	return done
}

// isZero tells whether a domain has no rules of its own.
func (r *Rules) isZero() bool {
	return len(r.Stages) == 0 && len(r.Filters) == 0 && len(r.Weights) == 0 && r.Mark == 0 && r.Quarantine == 0 &&
		r.Defer == 0 && r.Reject == 0 && !r.AcceptAndMark
}

// judgeFaults are those of all that judging needs.
func (c *Config) judgeFaults() []mta.Fault {
	faults := below("judge", c.Judge.Validate())
	faults = append(faults, below("auth", c.Auth.Validate())...)
	for _, f := range filter.Validate(c.Filters) {
		faults = append(faults, mta.Fault{Key: "filters" + f.Key, Text: f.Text})
	}
	faults = append(faults, below("judge", checkFilters(c.Judge.Filters, filterNames(c.Filters)))...)
	if c.HindsightAfter < 0 {
		faults = append(faults, mta.NewFault("hindsight_after", "must not be below 0; 0 is never"))
	}
	return faults
}

// filterNames are the names that filters go by.
func filterNames(filters []filter.Config) []string {
	var names []string
	for _, f := range filters {
		names = append(names, cmp.Or(f.Name, f.Kind))
	}
	return names
}

// checkFilters reports the names of filters that do not exist.
func checkFilters(names []string, exist []string) []mta.Fault {
	var faults []mta.Fault
	for i, name := range names {
		if !slices.Contains(exist, name) {
			faults = append(faults, mta.NewFault(fmt.Sprintf("filters[%d]", i), "there is no filter %q: name one of policy.filters", name))
		}
	}
	return faults
}
