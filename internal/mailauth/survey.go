package mailauth

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"understudy/internal/header"
	"understudy/internal/mta"
)

// maxLine is what a line may have without its line end (RFC 5322, 2.1.1).
const maxLine = 998

// maxAuthors is how many domains of From fields are held against DMARC.
const maxAuthors = 4

// single are the fields that may stand once (RFC 5322, 3.6; RFC 2045, 3).
var single = [...]string{
	"From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Date", "Subject", "Message-ID", "In-Reply-To", "References",
	"MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}

// survey is what one pass over a header keeps of it.
type survey struct {
	seen       [len(single)]int // how often, of the names in single
	from       int              // addresses in From fields
	authors    []string         // their domains, each once
	crowd      bool             // there are more domains than are kept
	unread     bool             // a From field is no list of addresses
	cut        bool             // a From field is longer than what is read of it
	signatures []signature
	overlong   string // where the first overlong line stands
	nul        bool
	odd        bool // there are lines that are no field
}

func (s *survey) visit(f *header.Field) error {
	if f.Longest > maxLine && s.overlong == "" {
		s.overlong = cmp.Or(clean(f.Name), "the header")
	}
	s.nul = s.nul || f.NUL
	s.odd = s.odd || f.Name == ""
	for i, name := range single {
		if f.Is(name) {
			s.seen[i]++
			break
		}
	}
	switch {
	case f.Is("From"):
		s.author(f)
	case f.Is("DKIM-Signature"):
		if len(s.signatures) < maxSignatures {
			s.signatures = append(s.signatures, readSignature(f))
		}
	}
	return nil
}

// author takes the domains of a From field.
func (s *survey) author(f *header.Field) {
	boxes, ok := mailboxes(f.Text())
	s.unread, s.cut = s.unread || !ok, s.cut || f.Cut
	s.from += len(boxes)
	for _, d := range boxes {
		if d == "" || slices.Contains(s.authors, d) {
			continue
		}
		if len(s.authors) == maxAuthors {
			s.crowd = true
			continue
		}
		s.authors = append(s.authors, d)
	}
}

// findings tell what no proper mail program writes. Real mail is dirty: a fault alone asks for nothing, unless it is
// one by which two readers see two different messages.
func (s *survey) findings(h header.Header) []mta.Finding {
	var f []mta.Finding
	add := func(name string, weight float64, action mta.Action, format string, args ...any) {
		f = append(f, mta.Finding{Name: "header:" + name, Text: fmt.Sprintf(format, args...), Weight: weight, Action: action, Status: "6.0"})
	}
	if h.Over {
		add("too-large", 10, mta.Reject, "the header is larger than %d octets or %d fields", header.MaxOctets, header.MaxFields)
	}
	fields := s.times("From")
	if fields > 1 {
		add("many-from", 5, mta.Accept, "there are %d From fields", fields)
	}
	switch {
	case h.Over:
	case fields == 0:
		add("no-from", 3, mta.Accept, "the From field is missing")
	case s.crowd: // who would hold all of them against DMARC?
		add("many-domains", 8, mta.Reject, "the From field names more than %d domains", maxAuthors)
	case s.cut: // what is beyond is held against nothing
		add("from-too-long", 8, mta.Reject, "the From field is longer than %d octets", header.MaxValue)
	case s.unread:
		add("from", 2, mta.Accept, "the From field can't be read as a list of addresses")
	case fields == 1 && s.from != 1:
		add("from", 1, mta.Accept, "the From field has %d addresses", s.from)
	}
	if s.times("Date") == 0 && !h.Over {
		add("no-date", 1, mta.Accept, "the Date field is missing")
	}
	if twice := s.twice(); len(twice) > 0 {
		add("duplicate", 1.5, mta.Accept, "more than once: %s", strings.Join(twice, ", "))
	}
	if s.overlong != "" {
		add("overlong", 0.5, mta.Accept, "a line of %s is longer than %d octets", s.overlong, maxLine)
	}
	if s.nul {
		add("nul", 2, mta.Accept, "the header holds a NUL")
	}
	if s.odd {
		add("odd-line", 1, mta.Accept, "the header has a line that is no field")
	}
	return f
}

// times tells how often a field of single stands.
func (s *survey) times(name string) int { return s.seen[slices.Index(single[:], name)] }

// twice names the fields that stand more often than they may; From is told of by itself.
func (s *survey) twice() []string {
	var names []string
	for i, name := range single {
		if s.seen[i] > 1 && name != "From" {
			names = append(names, name)
		}
	}
	return names
}
