package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// onlyAtStart are the keys, and the sections, that a running process can't change: what it has bound, opened or told
// its peers. The rest is put in force by a reload.
var onlyAtStart = []string{"hostname", "log.format", "admin", "inbound", "spool", "dns", "forwarder.memory", "forwarder.source"}

// NeedRestart lists the keys that differ and are put in force only by a restart.
func NeedRestart(old, new *Config) []string {
	before, after := leaves(old), leaves(new)
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(after)) { // structs have the same keys, whatever they hold
		if before[key] != after[key] && isBelow(key, onlyAtStart) {
			keys = append(keys, key)
		}
	}
	return keys
}

func isBelow(key string, sections []string) bool {
	return slices.ContainsFunc(sections, func(s string) bool { return key == s || strings.HasPrefix(key, s+".") })
}

// leaves gives every value of the configuration as text, by its key.
func leaves(c *Config) map[string]string {
	m := map[string]string{}
	addLeaves(m, reflect.ValueOf(c).Elem(), "")
	return m
}

func addLeaves(m map[string]string, v reflect.Value, key string) {
	switch {
	case v.Kind() == reflect.Map:
		for _, k := range v.MapKeys() {
			addLeaves(m, v.MapIndex(k), join(key, k.String()))
		}
	case v.Kind() == reflect.Struct && isMapping(v.Type()):
		for _, f := range fieldsOf(v.Type()) {
			addLeaves(m, v.FieldByIndex(f.index), join(key, f.name))
		}
	default:
		m[key] = fmt.Sprintf("%v", v.Interface())
	}
}

// Print writes the configuration in force as YAML, every key with its value; Parse reads it back.
func Print(w io.Writer, c *Config) error {
	var b bytes.Buffer
	err := yaml.NewEncoder(&b, yaml.IndentSequence(true), yaml.CustomMarshaler(func(d time.Duration) ([]byte, error) {
		return []byte(formatDuration(d)), nil
	})).Encode(c)
	if err != nil {
		return fmt.Errorf("config: print: %w", err)
	}
	_, err = w.Write(b.Bytes())
	return err
}
