package policy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"understudy/internal/mta"
)

const (
	maxListSize   = 2 << 30 // octets of a list file: its local parts must be addressable by 32 bits
	maxListLine   = 16 << 10
	maxListFaults = 20 // reported of one file; a wrong file would give millions
)

// ListFault is one line of a list that can't be understood. Line 0 is the whole file.
type ListFault struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

// String is "file:line: text".
func (f ListFault) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.Text
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text)
}

// ListFaults are all faults of all lists.
type ListFaults []ListFault

// Error has one fault a line.
func (f ListFaults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// readList reads one file for the domains that it serves and gives the set of each. One line that can't be understood
// makes the whole file unusable, for it may be a recipient who would be refused.
func readList(ctx context.Context, file string, domains []string, log *slog.Logger) (map[string]*set, ListFaults) {
	l := newList(file, domains)
	err := readWhole(file, maxListSize, func(r io.Reader) { l.parse(ctx, r, form{}) })
	if err != nil && len(l.faults) == 0 {
		return nil, ListFaults{{File: file, Text: reason(err)}}
	}
	if len(l.faults) > 0 {
		return nil, l.faults
	}
	if l.foreign > 0 {
		log.LogAttrs(ctx, slog.LevelWarn, "recipient list has addresses at domains that it does not serve, they are not used",
			slog.String("file", file), slog.Int("addresses", l.foreign))
	}
	return l.sets()
}

// readWhole hands a file to read; an error says that what was read is not the file as its writer left it.
func readWhole(file string, limit int64, read func(io.Reader)) error {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular(): // opening a pipe would wait for its writer
		return errors.New("is not a regular file")
	case info.Size() > limit:
		return fmt.Errorf("is larger than %v", mta.Size(limit))
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return err
	}
	read(io.LimitReader(f, limit))
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return errors.New("was written to while it was read: write a new file and rename it over the old one")
	}
	return nil
}

// reason is an error without the operation and path that stand before it anyway.
func reason(err error) string {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// list gathers the recipients of one file.
type list struct {
	file    string
	members map[string]*members // by domain
	foreign int                 // addresses at domains that the list does not serve
	odd     int                 // values of a directory or database that are no addresses
	faults  ListFaults
}

// members are the folded local parts of one domain, in the form of set.arena.
type members struct {
	arena    []byte
	n        int
	all      bool
	patterns []*regexp.Regexp
}

func newList(file string, domains []string) *list {
	l := &list{file: file, members: make(map[string]*members, len(domains))}
	for _, d := range domains {
		l.members[d] = &members{}
	}
	return l
}

func (l *list) fault(line int, format string, args ...any) {
	l.faults = append(l.faults, ListFault{File: l.file, Line: line, Text: fmt.Sprintf(format, args...)})
}

// form is how a list is written. The zero form is Plain.
type form struct {
	format    Format
	column    string
	separator string
}

// parse reads the whole list and tells what is wrong with it.
func (l *list) parse(ctx context.Context, r io.Reader, f form) ListFaults {
	switch f.format {
	case CSV:
		l.csv(ctx, r, f)
	case Postfix:
		l.lines(ctx, r, l.postfixLine)
	case Patterns:
		l.lines(ctx, r, l.pattern)
	default:
		l.lines(ctx, r, l.line)
	}
	return l.faults
}

// lines hands each line to take, and notes what that says of it.
func (l *list) lines(ctx context.Context, r io.Reader, take func(line string) error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxListLine)
	n := 0
	for lines.Scan() {
		n++
		if !l.goOn(ctx, n) {
			return
		}
		line := lines.Bytes()
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte(byteOrderMark)) // some editors begin a file with it
		}
		if err := take(string(line)); err != nil {
			l.fault(n, "%v", err)
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		l.fault(n+1, "is longer than %v", mta.Size(maxListLine))
	case err != nil:
		l.fault(n+1, "%s", reason(err))
	}
}

const byteOrderMark = "\ufeff"

// goOn tells whether line n is worth reading: nobody has lost patience, and not everything is wrong.
func (l *list) goOn(ctx context.Context, n int) bool {
	if err := ctx.Err(); err != nil {
		l.fault(n, "%v", err)
		return false
	}
	if len(l.faults) == maxListFaults {
		l.fault(n, "too many faults, the rest of the file was not read")
		return false
	}
	return true
}

// line takes a line of the form Plain.
func (l *list) line(line string) error {
	entry, err := cutEntry(line)
	if entry == "" || err != nil {
		return err
	}
	return l.address(entry)
}

// address adds "user@example.org", or all of "@example.org".
func (l *list) address(entry string) error {
	if d, ok := strings.CutPrefix(entry, "@"); ok {
		key, err := mta.Domain(d)
		if err != nil {
			return err
		}
		l.add(key, "")
		return nil
	}
	p, err := mta.ParsePath(entry)
	if err != nil {
		return err
	}
	if p.Local == "" || p.Domain == "" {
		return fmt.Errorf("%q has no domain: write user@example.org or @example.org", entry)
	}
	l.add(p.DomainKey(), fold(p.Local))
	return nil
}

// cutEntry gives the address of a line, "" if it holds none. In a Postfix map a value follows the address; it says
// nothing about the recipient and is read over, unless it looks like an address that was meant to have its own line.
func cutEntry(line string) (string, error) {
	line = strings.Trim(line, " \t\r")
	if line == "" || line[0] == '#' {
		return "", nil
	}
	if !utf8.ValidString(line) {
		return "", errors.New("is not UTF-8")
	}
	end := entryEnd(line)
	entry, value := line[:end], strings.TrimLeft(line[end:], " \t")
	if !strings.HasPrefix(value, "#") && strings.Contains(value, "@") {
		return "", fmt.Errorf("%q follows the address: write one address a line", value)
	}
	return entry, nil
}

// entryEnd is where the first blank outside of quotes stands.
func entryEnd(line string) int {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '"':
			quoted = !quoted
		case '\\':
			i++
		case ' ', '\t':
			if !quoted {
				return i
			}
		}
	}
	return len(line)
}

// add puts a local part into its domain's members; an empty one stands for all of them.
func (l *list) add(domain, local string) {
	m := l.members[domain]
	switch {
	case m == nil:
		l.foreign++
	case local == "":
		m.all = true
	case len(local) <= 255: // folding can lengthen; longer ones can't arrive either (mta.Path)
		m.arena = append(m.arena, byte(len(local)))
		m.arena = append(m.arena, local...)
		m.n++
	}
}

// sets indexes what was read. A domain without any recipient is a fault: such a file comes from a script that failed,
// and believing it would refuse all of the domain's mail for good.
func (l *list) sets() (map[string]*set, ListFaults) {
	sets := l.index()
	for domain := range l.members {
		if sets[domain] == nil {
			l.fault(0, "names no recipient at %s", domain)
		}
	}
	return sets, l.faults
}

// index makes the set of each domain that has recipients. The list can't be added to afterwards.
func (l *list) index() map[string]*set {
	sets := make(map[string]*set, len(l.members))
	for domain, m := range l.members {
		if m.n == 0 && !m.all && len(m.patterns) == 0 {
			continue
		}
		s := newSet(bytes.Clone(m.arena), m.n, m.all) // the clone has no spare room
		s.at, s.domain, s.patterns = time.Now().UnixNano(), domain, m.patterns
		sets[domain] = s
		m.arena = nil
	}
	return sets
}

// fold gives the form under which local parts are compared. RFC 5321, 2.4 leaves their case to the primary; a primary
// that tells "Bob" from "bob" is not known to exist, one that does not would lose mail if we did.
func fold(local string) string {
	for i := range len(local) {
		if local[i] >= utf8.RuneSelf {
			return norm.NFC.String(strings.ToLower(norm.NFC.String(local))) // RFC 6532, 3.1
		}
	}
	return strings.ToLower(local)
}
