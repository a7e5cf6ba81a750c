#define PATH portable
#define PATH_PORTABLE
#include "path.h"
