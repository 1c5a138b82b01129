package policy

import (
	"fmt"
	"strconv"
	"strings"

	"understudy/internal/mailauth"
	"understudy/internal/mta"
)

// markField is the name of the field that tells the primary what speaks against a message.
const markField = "X-Understudy-Verdict"

// forged finds the fields that only we and the primary may write.
func (p *Policy) forged(j *judging, env *mta.Envelope, c mta.Content) ([]mta.Span, error) {
	own := []string{j.cfg.Hostname}
	for _, d := range env.Dests() {
		own = append(own, d)
		if p.deps.PrimaryNames != nil {
			own = append(own, p.deps.PrimaryNames(d)...)
		}
	}
	drop, err := mailauth.Forged(own, c)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return drop, nil
}

// above are the fields of ours that go above our Received field: what was found out about the sender, and for a marked
// or held message why.
func (j *judging) above(env *mta.Envelope, v *mta.Verdict) string {
	fields := ""
	if j.verifier != nil && j.stages[stageSender] {
		fields = mailauth.Fields(j.cfg.Hostname, env, v.Auth)
	}
	if v.Action == mta.Mark || v.Action == mta.Quarantine {
		fields += mark(v)
	}
	return fields
}

// mark is the field that says what speaks against a message. Findings' names hold what filters and lists are called, so
// whatever could have a meaning in a header is taken from them.
func mark(v *mta.Verdict) string {
	const most = 50 // findings; a line each
	var b strings.Builder
	b.WriteString(markField + ": " + v.Action.String() + "; score=" + strconv.FormatFloat(v.Score, 'f', -1, 64))
	for _, f := range v.Findings[:min(len(v.Findings), most)] {
		b.WriteString(";\r\n\t" + plainName(f.Name) + "=" + strconv.FormatFloat(f.Weight, 'f', -1, 64))
	}
	b.WriteString("\r\n")
	return b.String()
}

// plainName keeps letters, digits and the signs of finding names.
func plainName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(":.-_", r) {
			return r
		}
		return '?'
	}, s)
	return s[:min(len(s), 100)]
}
