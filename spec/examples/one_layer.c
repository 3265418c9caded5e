/* A program for: lstm-spec --stdio "./one_layer". One layer in float64, no gradients.
   Build: cc -O2 -o one_layer one_layer.c -lm */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A JSON value; `next` is the following member or item. */
typedef struct Value {
    enum { NUMBER, TEXT, LIST, OBJECT, WORD } kind;
    char *name, *text;
    double number;
    struct Value *first, *next;
} Value;

static char *at;

static void blank(void) { at += strspn(at, " \t\r\n"); }

static char *string(void) {
    char *start = ++at;
    while (*at != '"') at += *at == '\\' ? 2 : 1;
    *at++ = 0;
    return start;
}

static Value *parse(void) {
    Value *v = calloc(1, sizeof *v), **tail = &v->first;
    blank();
    if (*at == '{' || *at == '[') {
        char close = *at == '{' ? '}' : ']';
        v->kind = *at++ == '{' ? OBJECT : LIST;
        for (blank(); *at != close; blank()) {
            char *name = NULL;
            if (*at == ',') { at++; blank(); }
            if (close == '}') { name = string(); blank(); at++; }
            *tail = parse();
            (*tail)->name = name;
            tail = &(*tail)->next;
        }
        at++;
    } else if (*at == '"') {
        v->kind = TEXT;
        v->text = string();
        v->number = strtod(v->text, NULL); /* nan, inf and -inf are numbers in quotation marks */
    } else if (strchr("tfn", *at)) {
        v->kind = WORD;
        v->number = *at == 't';
        at += *at == 'f' ? 5 : 4;
    } else {
        v->number = strtod(at, &at);
    }
    return v;
}

static void release(Value *v) {
    while (v) {
        Value *next = v->next;
        release(v->first);
        free(v);
        v = next;
    }
}

static Value *get(Value *v, const char *name) {
    for (v = v ? v->first : NULL; v && strcmp(v->name, name);) v = v->next;
    return v;
}

static int item(Value *list, int k) {
    for (list = list->first; k--;) list = list->next;
    return (int)list->number;
}

static double *numbers(Value *arrays, const char *name) {
    Value *data = get(get(arrays, name), "data");
    int n = 0;
    if (!data) return NULL;
    for (Value *v = data->first; v; v = v->next) n++;
    double *found = malloc((n + 1) * sizeof *found);
    n = 0;
    for (Value *v = data->first; v; v = v->next) found[n++] = v->number;
    return found;
}

static void print(const char *name, const int *shape, int axes, const double *data, int n) {
    printf("\"%s\": {\"shape\": [", name);
    for (int k = 0; k < axes; k++) printf(k ? ", %d" : "%d", shape[k]);
    printf("], \"data\": [");
    for (int k = 0; k < n; k++) printf(isfinite(data[k]) ? "%s%.17g" : "%s\"%f\"", k ? ", " : "", data[k]);
    printf("]}");
}

static double sigmoid(double z) { return 1 / (1 + exp(-z)); }

/* What this program does not know, or NULL. */
static const char *unknown(Value *question) {
    static const char *known[] = {"input_size", "hidden_size", "bias", "reverse", "lengths"};
    Value *config = get(question, "config"), *bias = get(config, "bias");
    if (strcmp(get(question, "op")->text, "layer")) return get(question, "op")->text;
    if (strcmp(get(question, "dtype")->text, "float64")) return get(question, "dtype")->text;
    for (Value *v = config->first; v; v = v->next) {
        int here = (v->kind == WORD || v->kind == NUMBER) && v->number == 0;
        for (int k = 0; k < 5; k++) here |= !strcmp(v->name, known[k]);
        if (!here) return v->name;
    }
    return bias && bias->number ? NULL : "no bias";
}

static void refuse(const char *kind, const char *name) {
    printf("{\"refused\": \"%s\", \"message\": \"%s has another shape than expected, or is missing\"}\n", kind, name);
}

/* Whether an array has this shape. */
static int shaped(Value *arrays, const char *name, int axes, const int *shape) {
    Value *given = get(get(arrays, name), "shape"), *v = given ? given->first : NULL;
    for (int k = 0; k < axes; k++, v = v->next)
        if (!v || (int)v->number != shape[k]) return 0;
    return given && !v;
}

static void answer(Value *question) {
    Value *config = get(question, "config"), *arrays = get(question, "arrays"), *lengths = get(config, "lengths");
    const char *what = unknown(question);
    if (what) {
        printf("{\"unsupported\": \"%s\"}\n", what);
        return;
    }
    int I = (int)get(config, "input_size")->number, H = (int)get(config, "hidden_size")->number;
    int reverse = get(config, "reverse") && get(config, "reverse")->number;
    Value *x_shape = get(get(arrays, "x"), "shape");
    int T = item(x_shape, 0), B = item(x_shape, 1);
    int shapes[8][3] = {{T, B, I}, {4 * H, I}, {4 * H, H}, {4 * H}, {4 * H}, {B, H}, {B, H}};
    const char *names[] = {"x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h_0", "c_0"};
    for (int k = 0; k < 7; k++)
        if (!shaped(arrays, names[k], k == 0 ? 3 : k == 3 || k == 4 ? 1 : 2, shapes[k])) {
            refuse("shape", names[k]);
            return;
        }
    lengths = lengths && lengths->kind == LIST ? lengths : NULL;
    int given = 0;
    for (Value *v = lengths ? lengths->first : NULL; v; v = v->next, given++)
        if (v->number < 0 || v->number > T) {
            printf("{\"refused\": \"other\", \"message\": \"length %d is not in 0 to %d\"}\n", (int)v->number, T);
            return;
        }
    if (lengths && given != B) {
        refuse("shape", "lengths");
        return;
    }
    double *a[7], *y = calloc((size_t)T * B * H + 1, sizeof *y), *z = malloc(4 * H * sizeof *z);
    for (int k = 0; k < 7; k++) a[k] = numbers(arrays, names[k]);
    double *x = a[0], *W = a[1], *U = a[2], *b_ih = a[3], *b_hh = a[4], *h = a[5], *c = a[6];
    for (int b = 0; b < B; b++) {
        int steps = lengths ? item(lengths, b) : T;
        for (int n = 0; n < steps; n++) {
            int t = reverse ? steps - 1 - n : n;
            for (int row = 0; row < 4 * H; row++) {
                z[row] = b_ih[row] + b_hh[row];
                for (int k = 0; k < I; k++) z[row] += W[row * I + k] * x[(t * B + b) * I + k];
                for (int k = 0; k < H; k++) z[row] += U[row * H + k] * h[b * H + k];
            }
            for (int k = 0; k < H; k++) {
                double *here = &c[b * H + k];
                *here = sigmoid(z[H + k]) * *here + sigmoid(z[k]) * tanh(z[2 * H + k]);
                y[(t * B + b) * H + k] = h[b * H + k] = sigmoid(z[3 * H + k]) * tanh(*here);
            }
        }
    }
    int y_shape[] = {T, B, H}, state[] = {B, H};
    printf("{\"arrays\": {");
    print("y", y_shape, 3, y, T * B * H);
    printf(", ");
    print("h_n", state, 2, h, B * H);
    printf(", ");
    print("c_n", state, 2, c, B * H);
    printf("}}\n");
    for (int k = 0; k < 7; k++) free(a[k]);
    free(y);
    free(z);
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        at = line;
        Value *question = parse();
        answer(question);
        fflush(stdout);
        release(question);
    }
    free(line);
    return 0;
}
