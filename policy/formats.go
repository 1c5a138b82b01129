package policy

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"understudy/internal/mta"
)

// maxPatterns is how many regular expressions a list may have: each unlisted recipient is held against all of them.
const maxPatterns = 1000

// postfixLine takes a line of a Postfix table. The key alone counts, as it does for relay_recipient_maps; values may
// be addresses, as in virtual_alias_maps. Keys that can't match a recipient of a relay domain are read over, as
// Postfix does.
func (l *list) postfixLine(line string) error {
	if line == "" || line[0] == '#' || line[0] == ' ' || line[0] == '\t' { // a leading blank goes on with a value
		return nil
	}
	if !utf8.ValidString(line) {
		return errors.New("is not UTF-8")
	}
	key, err := postfixKey(strings.TrimRight(line, " \t\r"))
	if err != nil {
		return err
	}
	if !strings.Contains(key, "@") {
		return nil
	}
	if local, domain, ok := cutLast(key, "@"); ok && local != "" && strings.ContainsAny(local, " \t") && local[0] != '"' {
		p, err := mta.MakePath(local, domain) // tables may hold the form without quotes
		if err != nil {
			return err
		}
		key = p.String()
	}
	return l.address(key)
}

// postfixKey cuts off the value. A key with blanks stands in quotes (postmap(1)), or before the tab that postmap -s
// writes. In "a b"@example.org the quotes are the address's own.
func postfixKey(line string) (string, error) {
	if line == "" || line[0] != '"' {
		if key, _, ok := strings.Cut(line, "\t"); ok && strings.Contains(key, "@") && strings.Contains(key[:strings.LastIndexByte(key, '@')], " ") {
			return key, nil
		}
		return line[:blankOrEnd(line)], nil
	}
	var key strings.Builder
	for i := 1; i < len(line); i++ {
		switch line[i] {
		case '"':
			if rest := line[i+1:]; rest != "" && rest[0] == '@' {
				return line[:i+1+blankOrEnd(rest)], nil
			}
			return key.String(), nil
		case '\\':
			i++
			if i == len(line) {
				return "", errors.New("has a quote without its end")
			}
		}
		key.WriteByte(line[i])
	}
	return "", errors.New("has a quote without its end")
}

func blankOrEnd(s string) int {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return i
	}
	return len(s)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// pattern takes one regular expression. It must match the whole address, so that a forgotten ^ or $ opens no door.
func (l *list) pattern(line string) error {
	line = strings.Trim(line, " \t\r")
	if line == "" || line[0] == '#' {
		return nil
	}
	if !utf8.ValidString(line) {
		return errors.New("is not UTF-8")
	}
	if _, err := regexp.Compile(line); err != nil { // alone first: what is wrapped could close the wrapping
		return err
	}
	re, err := regexp.Compile(`\A(?:` + line + `)\z`)
	if err != nil {
		return err
	}
	for _, m := range l.members {
		if len(m.patterns) == maxPatterns {
			return fmt.Errorf("is one expression too many: a list may have %d", maxPatterns)
		}
		m.patterns = append(m.patterns, re)
	}
	return nil
}

// csv takes one column of a table whose first line names the columns.
func (l *list) csv(ctx context.Context, r io.Reader, f form) {
	rows := csv.NewReader(r)
	rows.ReuseRecord = true
	if f.separator != "" {
		rows.Comma, _ = utf8.DecodeRuneInString(f.separator)
	}
	head, err := rows.Read()
	if err != nil {
		l.fault(1, "has no line that names the columns: %v", csvReason(err))
		return
	}
	column := columnOf(head, f.column)
	if column < 0 {
		l.fault(1, "has no column %q: there are %q", f.column, head)
		return
	}
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil { // a row that is cut short has too few columns
			l.fault(csvLine(err), "%v", csvReason(err))
			return
		}
		line, _ := rows.FieldPos(column)
		if !l.goOn(ctx, line) {
			return
		}
		if err := l.cell(row[column]); err != nil {
			l.fault(line, "%v", err)
		}
	}
}

func columnOf(head []string, name string) int {
	for i, h := range head {
		h = strings.TrimSpace(strings.TrimPrefix(h, byteOrderMark))
		if strings.EqualFold(h, strings.TrimSpace(name)) {
			return i
		}
	}
	return -1
}

func csvLine(err error) int {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return e.Line
	}
	return 0
}

func csvReason(err error) error {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return e.Err
	}
	return err
}

// cell takes the addresses of one value of a table or a directory: one, or several with blanks, commas or semicolons
// between them, as exports of Exchange have them. An empty one has none.
func (l *list) cell(value string) error {
	value = strings.TrimSpace(value)
	if value == "" {
		return nil
	}
	if !utf8.ValidString(value) {
		return errors.New("is not UTF-8")
	}
	if a, typed := mailAddress(value); a != "" && l.address(a) == nil || typed && a == "" && !strings.ContainsAny(value, ",;") {
		return nil
	}
	other := false // within an address of another kind, which may have blanks
	for _, v := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t\r\n,;", r) }) {
		a, typed := mailAddress(v)
		other = typed && a == "" || !typed && other
		if other {
			continue
		}
		if err := l.address(a); err != nil {
			return err
		}
	}
	return nil
}

// mailAddress takes the "smtp:" off an address as Active Directory writes them. A "sip:" or "X500:" is none of mail and
// gives "". Typed says that there was such a word.
func mailAddress(value string) (address string, typed bool) {
	word, rest, ok := strings.Cut(value, ":")
	if !ok || word == "" || strings.Trim(strings.ToLower(word), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return value, false
	}
	if !strings.EqualFold(word, "smtp") {
		return "", true
	}
	return rest, true
}
