package config

import (
	"encoding"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"understudy/internal/mta"
)

// decoder reads a syntax tree into Go values. What is wrong it notes and goes on, leaving the value as it was.
type decoder struct {
	file    string
	faults  Faults
	places  map[string]*token.Position // where each key, and each element of a list, stands
	bad     map[string]bool            // keys that have a fault
	anchors map[string]ast.Node
	fields  map[reflect.Type][]field
}

func newDecoder(file string) *decoder {
	return &decoder{
		file: file, places: map[string]*token.Position{}, bad: map[string]bool{}, anchors: map[string]ast.Node{},
		fields: map[reflect.Type][]field{},
	}
}

func (d *decoder) fault(at *token.Position, key, format string, args ...any) {
	d.bad[key] = true
	d.faults = append(d.faults, Fault{File: d.file, Line: at.Line, Column: at.Column, Key: key, Text: fmt.Sprintf(format, args...)})
}

// keyed is a map whose keys have one canonical form.
type keyed interface {
	canonicalKey(string) (string, error)
}

// defaulted is the value of a map that has defaults of its own.
type defaulted interface {
	SetDefaults()
}

// value reads n into v, which is settable.
func (d *decoder) value(n ast.Node, v reflect.Value, key string) {
	if a, ok := n.(*ast.AnchorNode); ok {
		d.value(a.Value, v, key)
		d.anchors[a.Name.GetToken().Value] = a.Value // only now, so that no anchor can hold itself
		return
	}
	n, ok := d.resolve(n, key)
	if !ok {
		return
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		if !isMapping(v.Type()) {
			d.fault(position(n), key, "want %s, not %s", wanted(v.Type()), described(n))
			return
		}
		d.mapping(n, v, key, map[string]*token.Position{})
	case *ast.SequenceNode:
		d.sequence(n, v, key)
	case *ast.NullNode:
		d.null(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

// resolve gives what an alias stands for, and any other node as it is.
func (d *decoder) resolve(n ast.Node, key string) (ast.Node, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return rejoined(n), true
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		target := d.anchors[name]
		if target == nil {
			d.fault(position(n), key, "nothing above is marked &%s", name)
		}
		return target, target != nil
	case *ast.TagNode:
		d.fault(position(n), key, "tags such as %s have no meaning here", n.Start.Value)
		return nil, false
	}
	return n, true
}

// rejoined undoes a mistake of the YAML library, which reads the b:25 of {a: [b:25]} as a key and its value although
// no blank follows the colon (YAML 1.2.2, 7.3.3). What it is right about it returns as it is.
func rejoined(n *ast.MappingNode) ast.Node {
	if n.IsFlowStyle || len(n.Values) != 1 {
		return n
	}
	key, value := n.Values[0].Key.GetToken(), n.Values[0].Value
	colon := n.Values[0].Start
	text, ok := scalarText(value)
	if !ok || key.Indicator == token.QuotedScalarIndicator || colon.Position.Line != position(value).Line ||
		position(value).Column != colon.Position.Column+1 {
		return n
	}
	return &ast.StringNode{BaseNode: n.BaseNode, Token: key, Value: key.Value + ":" + text}
}

// mapping reads the keys of n that are not in given. What it reads it adds there.
func (d *decoder) mapping(n *ast.MappingNode, v reflect.Value, key string, given map[string]*token.Position) {
	own := map[string]bool{}
	for _, kv := range n.Values {
		if kv.Key.IsMergeKey() {
			continue
		}
		at := position(kv.Key)
		name, ok := d.keyText(kv.Key, v, key)
		if !ok {
			continue
		}
		if own[name] {
			d.fault(at, join(key, name), "is already given in line %d", given[name].Line)
		}
		if given[name] != nil {
			continue
		}
		given[name], own[name] = at, true
		d.entry(kv.Value, at, v, key, name)
	}
	for _, kv := range n.Values { // after all keys of n itself, for they come before what is merged
		if kv.Key.IsMergeKey() {
			d.merge(kv.Value, v, key, given)
		}
	}
}

// merge reads "<<: *anchor" and "<<: [*anchor, …]".
func (d *decoder) merge(n ast.Node, v reflect.Value, key string, given map[string]*token.Position) {
	n, ok := d.resolve(n, key)
	if !ok {
		return
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		d.mapping(n, v, key, given)
	case *ast.SequenceNode:
		for _, e := range n.Values {
			d.merge(e, v, key, given)
		}
	default:
		d.fault(position(n), key, "<< wants a mapping, not %s", described(n))
	}
}

// keyText gives the name of a key, in the canonical form if the map has one.
func (d *decoder) keyText(k ast.MapKeyNode, v reflect.Value, key string) (string, bool) {
	text, ok := scalarText(k)
	if !ok {
		d.fault(position(k), key, "has a key that is not plain text")
		return "", false
	}
	if m, ok := v.Interface().(keyed); ok {
		name, err := m.canonicalKey(text)
		if err != nil {
			d.fault(position(k), join(key, text), "%v", err)
			return "", false
		}
		return name, true
	}
	return text, true
}

// entry reads one key's value into the struct or map v.
func (d *decoder) entry(n ast.Node, at *token.Position, v reflect.Value, key, name string) {
	full := join(key, name)
	d.places[full] = at
	if v.Kind() == reflect.Map {
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if def, ok := e.Addr().Interface().(defaulted); ok {
			def.SetDefaults()
		}
		d.value(n, e, full)
		v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), e)
		return
	}
	fields := d.fieldsOf(v.Type())
	for _, f := range fields {
		if f.name == name {
			d.value(n, v.FieldByIndex(f.index), full)
			return
		}
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	if near := nearest(name, names); near != "" {
		d.fault(at, full, "is not a known key; did you mean %s?", near)
		return
	}
	d.fault(at, full, "is not a known key; known here: %s", strings.Join(names, ", "))
}

func (d *decoder) fieldsOf(t reflect.Type) []field {
	f, ok := d.fields[t]
	if !ok {
		f = fieldsOf(t)
		d.fields[t] = f
	}
	return f
}

// sequence reads a list. It takes the place of the default, so that an operator can make it shorter.
func (d *decoder) sequence(n *ast.SequenceNode, v reflect.Value, key string) {
	if v.Kind() != reflect.Slice || isText(v.Type()) {
		d.fault(position(n), key, "want %s, not %s", wanted(v.Type()), described(n))
		return
	}
	s := reflect.MakeSlice(v.Type(), len(n.Values), len(n.Values))
	for i, e := range n.Values {
		element := fmt.Sprintf("%s[%d]", key, i)
		d.places[element] = position(e)
		d.value(e, s.Index(i), element)
	}
	v.Set(s)
}

// null reads a key without a value. A section whose keys are all commented out is as good as absent; anything else
// is more likely a slip than a wish for the default.
func (d *decoder) null(n *ast.NullNode, v reflect.Value, key string) {
	if isMapping(v.Type()) {
		return
	}
	d.fault(position(n), key, "has no value: want %s, or leave the key out for its default", wanted(v.Type()))
}

// scalar reads one plain value.
func (d *decoder) scalar(n ast.Node, v reflect.Value, key string) {
	text, ok := scalarText(n)
	if !ok {
		d.fault(position(n), key, "want %s, not %s", wanted(v.Type()), described(n))
		return
	}
	if err := setScalar(n, text, v); err != nil {
		d.fault(position(n), key, "%v", err)
	}
}

func setScalar(n ast.Node, text string, v reflect.Value) error {
	mismatch := fmt.Errorf("want %s, not %q", wanted(v.Type()), text)
	switch p := v.Addr().Interface().(type) {
	case *time.Duration:
		if text == "0" {
			*p = 0
			return nil
		}
		parsed, err := parseDuration(text)
		if err == nil {
			*p = parsed
		}
		return err
	case *slog.Level:
		if p.UnmarshalText([]byte(text)) != nil {
			return mismatch
		}
		return nil
	case *netip.Prefix:
		parsed, ok := parseNetwork(text)
		if !ok {
			return mismatch
		}
		*p = parsed
		return nil
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		return setString(n, text, v)
	case reflect.Bool:
		b, isBool := n.(*ast.BoolNode)
		if !isBool {
			return mismatch
		}
		v.SetBool(b.Value)
		return nil
	}
	if !setNumber(text, v) {
		return mismatch
	}
	return nil
}

// parseNetwork reads a network, or an address alone as the network of just itself.
func parseNetwork(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}

// setString wants quotes where YAML sees something other than text: 010 and 1.10 would not be what they look like.
func setString(n ast.Node, text string, v reflect.Value) error {
	switch n.(type) {
	case *ast.StringNode, *ast.LiteralNode:
		v.SetString(text)
		return nil
	}
	return fmt.Errorf("want text: write it in quotes, %q", text)
}

// setNumber reads decimal numbers alone; YAML's 010 is eight to some and ten to others.
func setNumber(text string, v reflect.Value) bool {
	if digits := strings.TrimLeft(text, "+-"); len(digits) > 1 && digits[0] == '0' && digits[1] != '.' {
		return false
	}
	switch {
	case v.CanInt():
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err == nil {
			v.SetInt(i)
		}
		return err == nil
	case v.CanUint():
		u, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err == nil {
			v.SetUint(u)
		}
		return err == nil
	case v.CanFloat():
		f, err := strconv.ParseFloat(text, v.Type().Bits())
		if err == nil && f-f == 0 { // neither infinite nor NaN
			v.SetFloat(f)
			return true
		}
	}
	return false
}

// scalarText is a plain value as it stands in the file, without quotes.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// wanted says how a value of the type is written.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "a duration such as 90s, 15m, 36h or 30d"
	case reflect.TypeFor[mta.Size]():
		return "a size such as 64MiB"
	case reflect.TypeFor[slog.Level]():
		return "debug, info, warn or error"
	case reflect.TypeFor[netip.Prefix]():
		return "a network such as 192.0.2.0/24"
	}
	switch {
	case isMapping(t) && isText(t):
		return "text, or keys and values"
	case isMapping(t):
		return "keys and values"
	case isText(t) || t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Slice:
		return "a list such as [a, b]"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float32 || t.Kind() == reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

func described(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	}
	return strconv.Quote(n.GetToken().Value)
}

// position is where an operator would point at.
func position(n ast.Node) *token.Position {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken().Position // its own token is the first colon
	}
	return n.GetToken().Position
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}
