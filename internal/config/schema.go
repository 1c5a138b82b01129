package config

import (
	"encoding"
	"reflect"
	"strings"
)

// field is one key of a struct.
type field struct {
	name  string
	index []int // for reflect.Value.FieldByIndex
}

// fieldsOf lists the keys of a struct, those of inlined structs among them.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case opts == "inline":
			for _, in := range fieldsOf(f.Type) {
				fields = append(fields, field{in.name, append([]int{i}, in.index...)})
			}
		case name != "" && name != "-":
			fields = append(fields, field{name, []int{i}})
		}
	}
	return fields
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// isMapping tells whether a type is written as keys and values. A struct without keys, such as netip.Addr, is not.
func isMapping(t reflect.Type) bool {
	return t.Kind() == reflect.Map || t.Kind() == reflect.Struct && len(fieldsOf(t)) > 0
}

// nearest is the candidate that s is most likely a slip of, or "".
func nearest(s string, candidates []string) string {
	best, least := "", max(2, len(s)/2)+1
	for _, c := range candidates {
		if d := distance(s, c); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions and replacements between two strings (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
