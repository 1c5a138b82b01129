package parity

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"understudy/internal/mta"
)

const (
	actions = int(mta.Reject) + 1
	fates   = int(mta.PutOff) + 1
)

// Matrix counts pairs by what we made of them and what the primary said. In JSON it is an object of objects:
// {"accept": {"accepted": 812, "refused": 3}}.
type Matrix [actions][fates]int64

// MarshalJSON implements json.Marshaler. What is 0 is left out.
func (m Matrix) MarshalJSON() ([]byte, error) {
	out := map[string]map[string]int64{}
	for a, row := range m {
		for f, n := range row {
			if n == 0 {
				continue
			}
			name := mta.Action(a).String()
			if out[name] == nil {
				out[name] = map[string]int64{}
			}
			out[name][mta.Fate(f).String()] = n
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Matrix) UnmarshalJSON(b []byte) error {
	var in map[mta.Action]map[mta.Fate]int64
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*m = Matrix{}
	for a, row := range in {
		for f, n := range row {
			if n < 0 {
				return fmt.Errorf("parity: %d is no count", n)
			}
			m[a][f] = n
		}
	}
	return nil
}

func (m *Matrix) add(o *Matrix) {
	for a := range m {
		for f := range m[a] {
			m[a][f] += o[a][f]
		}
	}
}

// Messages is how many pairs there are, but for single recipients.
func (m *Matrix) Messages() int64 {
	var n int64
	for a := range m {
		for f, c := range m[a] {
			if mta.Fate(f) != mta.RefusedRcpt {
				n += c
			}
		}
	}
	return n
}

// passes tells whether we would let the message through, and stops whether we would not. Deferring is neither: the
// sender tries again.
func passes(a mta.Action) bool { return a == mta.Accept || a == mta.Mark }
func stops(a mta.Action) bool  { return a == mta.Quarantine || a == mta.Reject }

// Bypass is the share of what we take that the primary refuses for its content, among messages that it decided about.
func (m *Matrix) Bypass() Rate {
	taken, refused := m.where(passes)
	return rateOf(refused, taken+refused)
}

// OverBlock is the share of what we refuse or hold that the primary accepts, among messages that it decided about.
func (m *Matrix) OverBlock() Rate {
	taken, refused := m.where(stops)
	return rateOf(taken, taken+refused)
}

func (m *Matrix) where(is func(mta.Action) bool) (taken, refused int64) {
	for a := range m {
		if is(mta.Action(a)) {
			taken += m[a][mta.Taken]
			refused += m[a][mta.RefusedContent]
		}
	}
	return taken, refused
}

// Reason is why one side refused what the other one took. Counts are those of a table of the most frequent ones: of a rare
// reason that came late the count may be too high, never too low.
type Reason struct {
	Text  string   `json:"text"`
	Count int64    `json:"count"`
	IDs   []string `json:"ids,omitempty"` // the newest messages, the newest last
}

const (
	maxReasons = 20
	maxIDs     = 10
	maxNames   = 8  // of findings of one message
	maxText    = 80 // octets
)

// note counts a reason: the most frequent ones stay, whatever is said in between (space saving, Metwally 2005).
func note(list []Reason, text string, id mta.ID) []Reason {
	i := slices.IndexFunc(list, func(r Reason) bool { return r.Text == text })
	if i < 0 && len(list) < maxReasons {
		list = append(list, Reason{Text: text})
		i = len(list) - 1
	}
	if i < 0 {
		i = least(list)
		list[i] = Reason{Text: text, Count: list[i].Count}
	}
	r := &list[i]
	r.Count++
	if id.IsZero() {
		return list
	}
	r.IDs = append(r.IDs, id.String())
	if len(r.IDs) > maxIDs {
		r.IDs = slices.Delete(r.IDs, 0, len(r.IDs)-maxIDs)
	}
	return list
}

func least(list []Reason) int {
	best := 0
	for i := range list {
		if list[i].Count < list[best].Count {
			best = i
		}
	}
	return best
}

// merge adds the reasons of another day.
func merge(list, more []Reason) []Reason {
	for _, m := range more {
		i := slices.IndexFunc(list, func(r Reason) bool { return r.Text == m.Text })
		if i < 0 {
			m.IDs = slices.Clone(m.IDs)
			list = append(list, m)
			continue
		}
		r := &list[i]
		r.Count += m.Count
		r.IDs = append(r.IDs, m.IDs...)
		if len(r.IDs) > maxIDs {
			r.IDs = r.IDs[len(r.IDs)-maxIDs:]
		}
	}
	return list
}

// top gives the most frequent ones, the most frequent first.
func top(list []Reason) []Reason {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Text, b.Text))
	})
	return list[:min(len(list), maxReasons)]
}

// record is what is counted of one day, domain and kind.
type record struct {
	Matrix Matrix `json:"matrix"`
	// Theirs says why the primary refused what we took, Ours why we stopped what it took.
	Theirs []Reason `json:"theirs,omitempty"`
	Ours   []Reason `json:"ours,omitempty"`
}

func (r *record) clone() *record {
	return &record{Matrix: r.Matrix, Theirs: merge(nil, r.Theirs), Ours: merge(nil, r.Ours)}
}

func (r *record) count(p mta.Pair) {
	r.Matrix[p.Ours][p.Theirs]++
	switch {
	case passes(p.Ours) && (p.Theirs == mta.RefusedContent || p.Theirs == mta.RefusedRcpt):
		r.Theirs = note(r.Theirs, reasonOf(p.Reply), p.ID)
	case stops(p.Ours) && p.Theirs == mta.Taken:
		for _, name := range p.Reasons[:min(len(p.Reasons), maxNames)] {
			r.Ours = note(r.Ours, clip(name), p.ID)
		}
	}
}

// reasonOf is what a refusal says, without what changes from one message to the next: its code, and the first words of
// its text, without addresses, names and numbers.
func reasonOf(r mta.Reply) string {
	text := r.Enhanced
	if text == "" {
		text = strconv.Itoa(r.Code)
	}
	first, _, _ := strings.Cut(r.Text, "\n")
	words := 0
	for word := range strings.FieldsSeq(first) {
		if strings.ContainsAny(word, "@/[]<>=0123456789") {
			continue
		}
		text += " " + strings.ToLower(word)
		if words++; words == 8 {
			break
		}
	}
	return clip(text)
}

// clip bounds a text and leaves out what can't be printed.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	for i := range s {
		if i > maxText {
			return s[:i]
		}
	}
	return s
}
