package policy

import (
	"fmt"
	"maps"
	"slices"

	"understudy/internal/mta"
)

// learnedSource stands in Domain.Sources where no list can be had and the primary's own replies are all we know.
const learnedSource = "learned"

// Domain is what holds for one mail domain.
type Domain struct {
	// Recipients is the file that lists all recipients of the domain, one address a line; everyone else is refused with
	// 550 5.1.1. "@example.org" on a line takes every address of that domain. "#" begins a comment. What follows an
	// address on its line is read over, so a Postfix relay_recipient_maps text file works as it is. A file may serve
	// several domains.
	Recipients string `yaml:"recipients"`

	// Sources are the names of policy.sources that list the domain's recipients; who is in one of them is taken.
	// "learned" says that there is no list, and only what the primary taught us is known.
	Sources []string `yaml:"sources"`

	// AliasOf names the domain whose lists hold for this one too: user@ exists here if user@ exists there.
	AliasOf string `yaml:"alias_of"`

	// AcceptAll takes every address of the domain, where no list can be had. What the primary then refuses stays here
	// in quarantine.
	AcceptAll bool `yaml:"accept_all"`

	// Unknown says what becomes of a recipient of whom nothing is known: he is in no list, but the lists are not
	// complete or not fresh, and the primary has not told us of him lately.
	Unknown Unknown `yaml:"unknown"`

	// WhileUp says what becomes of mail that comes to us while a primary of the domain takes mail.
	WhileUp WhileUp `yaml:"while_up"`

	// Judge is what the domain has otherwise than policy.judge.
	Judge Rules `yaml:"judge"`
}

// WhileUp is what becomes of mail that comes to us while a primary takes mail.
type WhileUp uint8

// The zero value is the strictest: the primary judges.
const (
	InlineWhileUp WhileUp = iota // its own replies are ours, as it gives them; nothing is kept here
	DeferWhileUp                 // 451, but for who keeps coming back: he may be unable to reach the primary
	AcceptWhileUp                // judged as if it were down, kept here, and handed over at once
)

var whileUpNames = [...]string{"inline", "defer", "accept"}

func (w WhileUp) String() string { return whileUpNames[w%3] }

// MarshalText implements encoding.TextMarshaler.
func (w WhileUp) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *WhileUp) UnmarshalText(b []byte) error {
	i := slices.Index(whileUpNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("want inline, defer or accept, not %q", b)
	}
	*w = WhileUp(i)
	return nil
}

// Unknown is what becomes of a recipient of whom nothing is known.
type Unknown uint8

// The zero value is the honest one.
const (
	DeferUnknown  Unknown = iota // 450 4.1.1: the sender tries again, until somebody knows
	AcceptUnknown                // taken; what the primary then refuses stays here in quarantine
	RejectUnknown                // 550 5.1.1, on the operator's word alone
)

var unknownNames = [...]string{"defer", "accept", "reject"}

func (u Unknown) String() string { return unknownNames[u%3] }

// MarshalText implements encoding.TextMarshaler.
func (u Unknown) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *Unknown) UnmarshalText(b []byte) error {
	i := slices.Index(unknownNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("want defer, accept or reject, not %q", b)
	}
	*u = Unknown(i)
	return nil
}

// Validate reports every mistake that can be seen without the other domains.
func (d *Domain) Validate() []mta.Fault {
	var faults []mta.Fault
	if d.Recipients == "" && len(d.Sources) == 0 && d.AliasOf == "" && !d.AcceptAll {
		faults = append(faults, mta.NewFault("recipients", "who are the recipients? Name the file that lists them, or sources, or say accept_all: true"))
	}
	if d.AcceptAll && (d.Recipients != "" || len(d.Sources) > 0 || d.AliasOf != "") {
		faults = append(faults, mta.NewFault("accept_all", "can't be true together with recipients, sources or alias_of: keep one of them"))
	}
	if d.AliasOf != "" && (d.Recipients != "" || len(d.Sources) > 0) {
		faults = append(faults, mta.NewFault("alias_of", "can't be given together with recipients or sources: the other domain's hold"))
	}
	for i, name := range d.Sources {
		switch {
		case name == learnedSource && (len(d.Sources) > 1 || d.Recipients != ""):
			faults = append(faults, mta.NewFault(index("sources", i), "%q says that there is no list: keep it alone", name))
		case slices.Index(d.Sources, name) != i:
			faults = append(faults, mta.NewFault(index("sources", i), "%s is named twice", name))
		}
	}
	return append(faults, below("judge", d.Judge.Validate())...)
}

// CheckDomains reports what does not fit together: sources and domains that do not exist. Keys begin with the domain.
func CheckDomains(cfg Config, domains map[string]Domain) []mta.Fault {
	var faults []mta.Fault
	for _, name := range slices.Sorted(maps.Keys(domains)) {
		d := domains[name]
		for i, s := range d.Sources {
			if _, ok := cfg.Sources[s]; !ok && s != learnedSource {
				faults = append(faults, mta.NewFault(name+"."+index("sources", i), "there is no source %q: name one of policy.sources", s))
			}
		}
		for _, f := range checkFilters(d.Judge.Filters, filterNames(cfg.Filters)) {
			faults = append(faults, mta.NewFault(name+".judge."+f.Key, "%s", f.Text))
		}
		if d.AliasOf != "" {
			if text := checkAlias(name, d.AliasOf, domains); text != "" {
				faults = append(faults, mta.NewFault(name+".alias_of", "%s", text))
			}
		}
	}
	return faults
}

// checkAlias wants another configured domain that is no alias itself, so that one look finds the lists.
func checkAlias(name, of string, domains map[string]Domain) string {
	target, err := mta.Domain(of)
	if err != nil {
		return err.Error()
	}
	d, ok := domains[target]
	switch {
	case target == name:
		return "names the domain itself"
	case !ok:
		return fmt.Sprintf("%s is not among the domains", target)
	case d.AliasOf != "":
		return fmt.Sprintf("%s is itself an alias: name %s", target, d.AliasOf)
	}
	return ""
}

// listsOf is the domain whose lists hold for name.
func listsOf(name string, domains map[string]Domain) string {
	if of := domains[name].AliasOf; of != "" {
		target, _ := mta.Domain(of) // CheckDomains has judged it
		return target
	}
	return name
}
