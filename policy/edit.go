package policy

import (
	"fmt"
	"io"
	"slices"
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

// lessFields is the content without some spans, as filters are to see it: a forged mark must not sway them.
func lessFields(c mta.Content, drop []mta.Span) mta.Content {
	if len(drop) == 0 {
		return c
	}
	e := mta.Edit{Drop: drop}
	return mta.Content{Size: c.Size - e.Dropped(), Open: func() (io.ReadCloser, error) {
		r, err := c.Open()
		if err != nil {
			return nil, err
		}
		return &lessReader{ReadCloser: r, drop: slices.Clone(drop)}, nil
	}}
}

// lessReader leaves spans out of what it reads.
type lessReader struct {
	io.ReadCloser
	at   int64
	drop []mta.Span // those that are not passed yet
}

func (r *lessReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for len(r.drop) > 0 && r.at >= r.drop[0].Start {
		n, err := io.CopyN(io.Discard, r.ReadCloser, r.drop[0].End-r.at)
		r.at += n
		if err != nil {
			return 0, err
		}
		r.drop = r.drop[1:]
	}
	if len(r.drop) > 0 && int64(len(b)) > r.drop[0].Start-r.at {
		b = b[:r.drop[0].Start-r.at]
	}
	n, err := r.ReadCloser.Read(b)
	r.at += int64(n)
	return n, err
}
